"""What holds for the workers of a test run and for every process that they start.

They share one compilation cache, which begins empty and goes with the run: with
JAX_COMPILATION_CACHE_DIR=DIR it is kept in DIR for the next one.
"""

import atexit
import os
import shutil
import tempfile

from distill_jax import simulated

if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="distill_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Programs run for milliseconds and are compiled for seconds; XLA_FLAGS="" optimizes as for a user.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
simulated.prepare()
# Tokenised texts: not those of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="distill_jax_tests_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# One core for each of the two workers.
os.environ["OMP_NUM_THREADS"] = "1"
