"""The entry: `python -m distill_jax.main` and the console command `distill_jax`.

    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Signals are looked after before anything else is imported, which takes seconds.
"""

import os
import sys
from typing import NoReturn

from distill_jax import STARTED, signals


def run() -> NoReturn:
    """Runs the command line of this process and ends with its exit code."""
    signals.watch()
    if os.getcwd() not in sys.path:  # for the modules of a config file or a scorer of one's own
        sys.path.append(os.getcwd())
    try:
        from distill_jax.program import main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("distill_jax"):
            raise
        text = f"error: the package {error.name} is missing: pip install -r requirements.txt"
        print(text, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv, STARTED))


if __name__ == "__main__":
    run()
