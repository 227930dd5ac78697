"""What a kernel computes, told to those who count operations in a traced program.

A trace has a kernel's grid, but not which of its steps a mask leaves out, nor always its products.
"""

import re

import jax

FORWARD, BACKWARD = "flash_forward", "flash_backward"  # names of jitted functions
_TOLD = re.compile(r"computes_(\d+)_of_(\d+)")


def telling(computed: int, whole: int):
    """A context: of what the kernels within it would compute without a mask, they do this part."""
    return jax.named_scope(f"computes_{computed}_of_{whole}")


def told(name_stack: str) -> tuple[int, int] | None:
    """(computed, whole) of a place in a program, None where nothing was told.

    >>> told("jvp(computes_3_of_4)/vmap(kernel)")
    (3, 4)
    """
    found = _TOLD.findall(name_stack)
    return (int(found[-1][0]), int(found[-1][1])) if found else None
