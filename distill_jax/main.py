"""The entry: `python -m distill_jax.main`, `python -m distill_jax` and the command `distill_jax`.

    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Streams and signals are looked after before anything else is imported, which takes seconds.
"""

import os
import sys
from typing import NoReturn

from distill_jax import STARTED, signals, simulated, streams
from distill_jax.visible import visible


def run() -> NoReturn:
    """Runs the command line of this process and ends with its exit code."""
    streams.prepare()
    streams.quiet_threads()
    signals.end_with_launcher()
    signals.watch()
    simulated.prepare()
    try:
        here = os.getcwd()
    except OSError:
        print("error: the current directory is gone: cd to one that exists", file=sys.stderr)
        sys.exit(2)
    if here not in sys.path:  # for the modules of a config file or a scorer of one's own
        sys.path.append(here)
    try:
        from distill_jax.program import main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("distill_jax"):
            raise
        text = f"error: the package {error.name} is missing: pip install -r requirements.txt"
        print(visible(text), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        text = f"error: the program itself cannot be read ({error}): see ulimit -n, and run again"
        print(visible(text), file=sys.stderr)
        sys.exit(70)
    code = main(sys.argv, STARTED)
    signals.ignore()
    sys.exit(code)


if __name__ == "__main__":
    run()
