"""`python -m distill_jax`."""

from distill_jax.main import run

if __name__ == "__main__":
    run()
