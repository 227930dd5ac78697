"""The values that pass between the parts of the package.

Shape legend, used in every name of this package:
  B sequences (rows)   T positions   V vocabulary entries   D model width
  L blocks             N query heads K key/value heads      H head width
  F feed-forward neurons             S cache slots          E known entries of a partial target,
                                                            or experts
  M temperatures, draws or teachers  W updates of the recent past
  x any leading shape
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = dict[str, Any]  # nested plain dicts of arrays
# Tokens, ids or lists of ids, that config.json and generation_config.json name.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# A key path of jax.tree_util as `blocks/attention/query`.
path_name = partial(jax.tree_util.keystr, simple=True, separator="/")
# advance(what, done, total): `done` of `total` units of something are done, in words such as
# "blocks"; total 0 where it is not known. Whoever waits is told; nothing else depends on it.
Advance = Callable[[str, int, int], None]
COMPILING = "compiling"  # how `what` begins while a program is compiled


def silent(what: str, done: int, total: int) -> None:
    """An Advance that tells nobody."""


class UserError(Exception):
    """The input or the config is wrong. The message is one line: what, which value, what to do."""


class OutOfRoom(Exception):
    """The disk, or a limit of the process, holds no more; the same command goes on once it does."""


class ChangedOnDisk(Exception):
    """What was made for a run is not what was written; the same command makes it again."""


class Stopped(Exception):
    """A signal asked the run to stop. Progress is saved; the same command resumes it."""


class NumbersBrokeDown(Exception):
    """Updates stayed non-finite, or steps run again give other numbers; no rerun mends that."""


class Forbidden(Exception):
    """config.study.gate is set and the verdict forbids shipping."""


class Mean(NamedTuple):
    """An average before its division, so that parts of a batch merge exactly."""

    total: Array
    count: Array


class Batch(NamedTuple):
    """Packed rows. Inputs and labels are already shifted against each other (data/pack.py).

    tokens_BT    int32, what the model reads.
    labels_BT    int32, the token that follows each input in its own document.
    weight_BT    float32, how much a label counts: 1 for a trained label, 0 for a prompt or padding.
    segment_BT   int32, 0 for padding, 1, 2, ... for the pieces of a row; attention stays in each.
    position_BT  int32, position within the piece.
    document_BT  int32, index of the document in its source, -1 for padding.
    targets      cached teacher targets by position, as data/cache.py stores them; None where the
                 teacher runs in the step.
    """

    tokens_BT: Array
    labels_BT: Array
    weight_BT: Array
    segment_BT: Array
    position_BT: Array
    document_BT: Array
    targets: dict[str, Array] | None = None


class Unembed(NamedTuple):
    """How final hidden states become logits: softcap(scale * (hidden @ weight + bias)).

    softcap c means c * tanh(z / c). `softcap` and `scale` are Python numbers, fixed when traced.
    weight_DV: an array, or quantised.Quantised, of a model that is not trained.
    """

    weight_DV: Any
    bias_V: Array | None = None
    softcap: float | None = None
    scale: float = 1.0


class Routing(NamedTuple):
    """Where the routers sent the tokens of a batch, padding left out; E indexes experts.

    chosen_LE       tokens of which the expert was one of those chosen
    probability_LE  the router's probability of the expert, summed over tokens
    tokens_L        tokens
    """

    chosen_LE: Array
    probability_LE: Array
    tokens_L: Array


class Hidden(NamedTuple):
    """Output of a decoder: final hidden states (after the last norm); on request, each block's.

    routing: of a model with experts, where it reads packed rows.
    """

    last_BTD: Array
    layers_LBTD: Array | None = None
    routing: Routing | None = None


class Projected(NamedTuple):
    """Teacher targets as final hidden states together with the head that turns them into logits.

    scale_BT: the scale per token of hidden states stored as int8; None for other dtypes.
    """

    hidden_BTD: Array
    unembed: Unembed
    scale_BT: Array | None = None


class TopK(NamedTuple):
    """Teacher targets as the raw logits of E entries per token and the mass of all others.

    ids_BTE      int32; -1 where a token has fewer than E entries.
    logits_BTE   float32, not divided by a temperature.
    rest_BTM     logsumexp of all other logits / each of `temperatures`; -inf where there are none.
    temperatures static; the first is 1. Only the policy renormalise allows any other.
    policy       how the other entries are treated: a key of POLICIES in losses/sparse.py.
    vocab        size of the teacher's vocabulary.
    """

    ids_BTE: Array
    logits_BTE: Array
    rest_BTM: Array
    temperatures: tuple[float, ...]
    policy: str
    vocab: int


class Sampled(NamedTuple):
    """Teacher targets as draws from p at temperature 1. Random-sampling KD, 2503.16870.

    ids_BTE          int32, distinct; -1 where a token has fewer than E.
    probability_BTE  counts / draws: an unbiased estimate of p.
    vocab            size of the teacher's vocabulary.
    """

    ids_BTE: Array
    probability_BTE: Array
    vocab: int


class Mixture(NamedTuple):
    """Several teachers as one distribution. `space` is probability (sum of w p) or logits."""

    teachers: tuple[Projected, ...]
    weights: tuple[float, ...]
    space: str


Targets = Projected | TopK | Sampled | Mixture


class Recent(NamedTuple):
    """The last W updates that were made, each at its number modulo W; zeros where none was yet.

    made     int32, how many were made
    norm_W   float32, gradient norms
    means_W  float32, by the name of each term's metric: its mean in nats per token
    """

    made: Array
    norm_W: Array
    means_W: dict[str, Array]


class TrainState(NamedTuple):
    """Everything that training changes. The teacher is never part of it.

    The last two fields are None as they are read from a checkpoint of a former version.
    """

    step: Array  # int32, updates tried, refused ones included
    params: Params
    opt_state: Any
    skipped: Array  # int32, updates refused because they were not finite
    skipped_in_a_row: Array  # int32, of these and of spikes
    adaptive: dict[str, dict[str, Array]]  # schedules that follow the loss (losses/terms.py)
    average: Params | None  # running average of params, where it serves as a teacher
    spikes: Array | None = None  # int32, updates refused because they were spikes (spikes.py)
    recent: Recent | None = None
