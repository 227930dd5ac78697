"""Values out of their limits are refused before any work, whichever job it is."""

import pytest

from configs.base import get_config
from distill_jax.config import flatten
from distill_jax.setup.limits import (
    LARGEST,
    LEAST,
    MAY_BE_ABSENT,
    MOST,
    OF_DTYPE,
    SHARES,
    check_limits,
)
from distill_jax.types import UserError

BAD = (
    {key: least - 1 for key, least in LEAST.items()}
    | {"optim.decay_steps": LARGEST + 1, "study.confidence": 0.9999999999}
    | {key: most + 1 for key, most in MOST.items()}
    | dict.fromkeys(SHARES, 1.0)
    | dict.fromkeys(MAY_BE_ABSENT, -0.5)
    | dict.fromkeys(OF_DTYPE, "float23")
)


def test_the_defaults_are_within_their_limits():
    check_limits(get_config())
    assert BAD.keys() <= flatten(get_config()).keys()


@pytest.mark.parametrize("key", BAD)
def test_a_value_out_of_its_limits_is_named_with_what_is_possible(key):
    c = get_config()
    c.update_from_flattened_dict({key: BAD[key]})
    with pytest.raises(UserError, match=rf"config\.{key} is .*: (use|did you mean)"):
        check_limits(c)
