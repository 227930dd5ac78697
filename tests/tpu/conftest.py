"""Every test here needs the compiler of TPUs; none needs a TPU."""

import os

import jax
import pytest

from distill_jax.setup.tpu_compiler import ENVIRONMENT, is_installed

MISSING = "the compiler of TPUs is missing: pip install -r tests/tpu/requirements.txt"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(os.path.dirname(__file__)):
            item.add_marker(pytest.mark.tpu)
            if not is_installed():
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session", autouse=True)
def _compiler():
    """libtpu loads as on a machine without chips; a program read from a cache knows no memory."""
    kept = jax.config.jax_enable_compilation_cache
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        yield
        jax.config.update("jax_enable_compilation_cache", kept)
