"""Reads and writes the entries of config.json on rotary positions.

Written with the names that every version of transformers reads: `rope_theta` and `rope_scaling`.
The newer `rope_parameters` is read too.
"""

import math

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.config_values import required, shown, without_null
from distill_jax.models.rope import RopeScaling
from distill_jax.types import UserError

_KINDS = ("default", "linear", "llama3", "longrope")  # which every family reads
_SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_positions",
}
_YARN_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "beta_fast": "fast_turns",
    "beta_slow": "slow_turns",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
}


def rope_entries(raw: dict) -> dict:
    """What a config.json says of rotary positions, under either name.

    Raises UserError where both names are there and disagree: versions of transformers take
    different ones.
    """
    new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if new and old:
        usual, inner = {"rope_theta": raw.get("rope_theta")}, new.get("full_attention")
        one = {**usual, **_of_one_kind(inner or new)}
        other = {**(one if inner else usual), **_of_one_kind(old)}
        if one != other:
            raise UserError(
                f"config.json has rope_parameters {shown(new)} and rope_scaling {shown(old)}, which"
                " disagree: remove one of them"
            )
    return new or old


def _of_one_kind(parameters):
    kind = parameters.get("rope_type") or parameters.get("type")
    return {**parameters, "rope_type": kind, "type": kind}


def read_rope(
    raw: dict, *, layer_type: str, theta: float, more_kinds: tuple[str, ...] = ()
) -> tuple[float, RopeScaling | None]:
    """(rotary base, scaling) of a kind of layer; `theta` is the default base.

    more_kinds: which the family reads elsewhere.
    """
    parameters = rope_entries(raw)
    parameters = parameters.get(layer_type) or parameters
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(required(parameters, "factor")))
    if kind == "longrope":
        return theta, _read_longrope(raw, parameters)
    if kind != "llama3":
        raise UserError(
            f"rope type '{kind}' is not supported: use a checkpoint with"
            f" {', '.join(_KINDS + more_kinds)}"
        )
    positions = required(raw, "max_position_embeddings")
    values = {"original_max_position_embeddings": positions, **parameters}
    return theta, RopeScaling(
        "llama3", **{ours: required(values, name) for name, ours in _SCALING_KEYS.items()}
    )


def _read_longrope(raw, parameters):
    positions = required(raw, "max_position_embeddings")
    name = "original_max_position_embeddings"
    original = raw.get(name) or parameters.get(name) or positions
    if type(original) is not int or original < 2:
        raise UserError(
            f"config.json has {name}={shown(original)}, not a whole number from 2: restore it"
        )
    factor = float(parameters.get("factor") or positions / original)
    return RopeScaling(
        "longrope",
        factor,
        original_positions=original,
        short_factors=tuple(map(float, required(parameters, "short_factor"))),
        long_factors=tuple(map(float, required(parameters, "long_factor"))),
        attention_factor=parameters.get("attention_factor") or _attention_factor(factor, original),
    )


def _attention_factor(factor, original):
    """The default of LongRoPE (2402.13753, section 3.3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def write_longrope(config: ModelConfig) -> dict:
    """The entries of LongRoPE.

    Three keys where the others have their defaults: older versions of transformers insist.
    """
    scaling = config.rope_scaling
    factor, original = scaling.factor, scaling.original_positions
    rest = {
        "factor": (factor, config.max_positions / original),
        "attention_factor": (scaling.attention_factor, _attention_factor(factor, original)),
    }
    return {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            **{name: value for name, (value, default) in rest.items() if value != default},
        },
        "original_max_position_embeddings": original,
    }


def read_yarn(raw: dict, *, theta: float) -> tuple[float, RopeScaling | None]:
    """As read_rope of all layers, of a family that has YaRN too.

    Absent entries are what transformers takes them to be (2309.00071, section 3.4).
    """
    parameters = rope_entries(raw)
    if (parameters.get("rope_type") or parameters.get("type")) != "yarn":
        return read_rope(raw, layer_type="full_attention", theta=theta, more_kinds=("yarn",))
    for name in ("mscale", "mscale_all_dim"):
        if parameters.get(name):
            raise UserError(
                f"config.json asks for {name}={shown(parameters[name])} of a rope type 'yarn',"
                " which is not supported: use a checkpoint without it"
            )
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or theta)
    if theta <= 1:
        raise UserError(f"config.json has rope_theta={theta:g}, not more than 1: restore the file")
    factor = float(required(parameters, "factor"))
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    values = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": usual}
    values |= without_null({name: parameters.get(name) for name in _YARN_KEYS})
    return theta, RopeScaling(
        "yarn", **{ours: required(values, name) for name, ours in _YARN_KEYS.items()}
    )


def read_rotary_width(raw: dict, head_width: int, *, share: float) -> int:
    """Coordinates of a head that turn; `share` of it where `rope_parameters` do not say."""
    parameters = rope_entries(raw)
    return int(head_width * (parameters.get("partial_rotary_factor") or share))


def rotary_share(config: ModelConfig) -> float:
    """The share of a head that turns, such that rounding down gives back the whole number."""
    return share_of(config.turned_width, config.head_width)


def share_of(turned: int, head_width: int) -> float:
    """The same of the coordinates that turn."""
    share = turned / head_width
    return share if int(head_width * share) == turned else math.nextafter(share, 1.0)


def write_rope_scaling(scaling: RopeScaling | None) -> dict | None:
    """The `rope_scaling` entry of a config.json."""
    if scaling is None:
        return None
    keys = _YARN_KEYS if scaling.kind == "yarn" else _SCALING_KEYS
    values = {name: getattr(scaling, ours) for name, ours in keys.items()}
    return {"rope_type": scaling.kind, **{k: v for k, v in values.items() if v is not None}}
