"""The size of a model: what is in it, and what of it computes one token."""

from distill_jax.report.tables import Size
from distill_jax.setup.models import size_of, size_text
from tests import tiny


def test_of_experts_those_of_one_token_are_active():
    dense, several = tiny.model(), tiny.model(experts=6, experts_per_token=2)
    half = 2 * 3 * 16 * 24  # of two blocks: gate, up and down
    router = 2 * 16 * 6
    size = size_of(dense, dense.abstract())
    assert size.active is None
    rest = size.total - half
    assert size_of(several, several.abstract()) == Size(
        rest + router + 6 * half, rest + router + 2 * half
    )


def test_a_size_is_told_with_what_is_active():
    assert size_text(Size(134_515_008)) == "134.5 M parameters"
    assert size_text(Size(46_700_000, 12_900_000)) == (
        "46.7 M parameters, 12.9 M of them per token"
    )
