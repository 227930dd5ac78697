"""Threads of simulated devices; without them tests/test_sequence.py is aborted on two cores."""

import os

import pytest

from distill_jax import simulated

FLAG = "--xla_force_host_platform_device_count"


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [(f"{FLAG}=8", "32"), (f"{FLAG}=2 --other=1 {FLAG}=4", "16"), (f"{FLAG}=1", None), ("", None)],
)
def test_several_devices_have_several_threads_each(flags, wanted, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("NPROC", raising=False)
    simulated.prepare()
    assert os.environ.get("NPROC") == wanted


def test_what_a_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=8")
    monkeypatch.setenv("NPROC", "9")
    simulated.prepare()
    assert os.environ["NPROC"] == "9"
