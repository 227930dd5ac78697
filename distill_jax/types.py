"""The values that flow between the rooms of the house.

Shape legend, used in every name of this package:
  B sequences (rows)   T positions   V vocabulary entries   D model width
  L blocks             N query heads K key/value heads      H head width
  F feed-forward neurons             S cache slots          x any leading shape
"""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = dict[str, Any]  # nested plain dicts of arrays


def path_name(path: tuple) -> str:
    """A key path of jax.tree_util as `blocks/attention/query`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


class UserError(Exception):
    """The input or the config is wrong; the message is one line: what, which value, what to do."""


class Stopped(Exception):
    """A signal asked the run to stop; what was worth saving is saved, and the command goes on."""


class NumbersBrokeDown(Exception):
    """Updates stayed non-finite; rerunning the same command would only repeat it."""


class Mean(NamedTuple):
    """An average that is not divided yet, so that parts of a batch merge exactly."""

    total: Array
    count: Array


class Batch(NamedTuple):
    """Packed rows. Inputs and labels are already shifted against each other (data/pack.py).

    tokens_BT    int32, what the model reads.
    labels_BT    int32, the token that follows each input in its own document.
    weight_BT    float32, how much a label counts: 1 for a trained label, 0 for a prompt or padding.
    segment_BT   int32, 0 for padding, 1.. for the pieces of a row; attention stays within a piece.
    position_BT  int32, place within the piece.
    document_BT  int32, index of the document in its source, -1 for padding.
    """

    tokens_BT: Array
    labels_BT: Array
    weight_BT: Array
    segment_BT: Array
    position_BT: Array
    document_BT: Array


class Unembed(NamedTuple):
    """How final hidden states become logits: softcap(scale * (hidden @ weight + bias)).

    softcap c means c * tanh(z / c). `softcap` and `scale` are Python numbers, fixed when traced.
    """

    weight_DV: Array
    bias_V: Array | None = None
    softcap: float | None = None
    scale: float = 1.0


class Hidden(NamedTuple):
    """What a decoder gives: final hidden states (after the last norm), on demand each block's."""

    last_BTD: Array
    layers_LBTD: Array | None = None


class Projected(NamedTuple):
    """Teacher targets as final hidden states together with the head that turns them into logits."""

    hidden_BTD: Array
    unembed: Unembed


class TrainState(NamedTuple):
    """Everything that training changes. The teacher is never part of it."""

    step: Array  # int32, updates tried
    params: Params
    opt_state: Any
    skipped: Array  # int32, updates refused because they were not finite
    skipped_in_a_row: Array  # int32
