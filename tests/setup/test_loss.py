"""The terms of a config: which there are, and which a student can have."""

import pytest

from configs.base import get_config
from distill_jax.setup.arm_config import arm_config
from distill_jax.setup.loss import check_experts, terms_of
from distill_jax.study.arms import ARMS
from distill_jax.types import UserError
from tests import tiny


def balanced():
    c = get_config()
    c.terms.load_balance.weight = 0.01
    return c


def test_balancing_needs_a_student_with_experts():
    c = balanced()
    terms = terms_of(c)
    assert [term.name for term in terms] == ["forward_kl", "load_balance"]
    check_experts(c, terms, tiny.model(experts=2, experts_per_token=1).config)
    with pytest.raises(UserError, match=r"load_balance\.weight is 0\.01, and the student has no"):
        check_experts(c, terms, tiny.model().config)
    check_experts(get_config(), terms_of(get_config()), tiny.model().config)


def test_balancing_alone_is_no_loss():
    c = balanced()
    c.terms.forward_kl.weight = 0.0
    with pytest.raises(UserError, match=r"every config\.terms\.\*\.weight but load_balance is 0"):
        terms_of(c)


def test_an_arm_on_labels_balances_as_the_others_do():
    mine = arm_config(balanced(), ARMS["sft"], seed=0)
    weights = {term.name: term.weight for term in terms_of(mine)}
    assert weights == {"cross_entropy": 1.0, "load_balance": 0.01}
