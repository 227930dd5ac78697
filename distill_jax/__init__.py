"""distill_jax: distil language models in JAX and learn whether it helped."""

import time

__version__ = "0.1.0"
STARTED = time.monotonic()  # a command counts its time from here
