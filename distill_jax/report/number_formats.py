"""How a number of a report is written: rounded to the digits shown, and nothing else."""

import json
import math
from collections.abc import Callable
from typing import Any

MINUS = "\N{MINUS SIGN}"
BROKEN = 1e5  # nats: no column of a page has room for more with all its decimals
THIN = "\N{NARROW NO-BREAK SPACE}"


def is_number(value: Any) -> bool:
    """An int or a float; not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def parameters(number: int) -> str:
    """The size of a model for a terminal: in millions, a small one's in thousands.

    >>> parameters(134_515_008), parameters(99_999), parameters(512)
    ('134.5 M', '100.0 k', '512')
    """
    if number < 1000:
        return str(number)
    return f"{number / 1e6:.1f} M" if number >= 1_000_000 else f"{number / 1e3:.1f} k"


def _nats(value: float) -> str:
    """Three decimals; four significant digits where numbers broke down."""
    return f"{value:{'.3f' if abs(value) < BROKEN else '.4g'}}".replace("-", MINUS)


def _signed(value: float) -> str:
    return f"{value:{'+.4f' if abs(value) < BROKEN else '+.4g'}}".replace("-", MINUS)


def _general(value: float) -> str:
    """Four significant digits, without an exponent where that is as short."""
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value):,}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)


def _letters(value: float) -> str:
    """Three significant digits and k, M, G, T, P or E for thousands, millions, ..."""
    power = min(max(int(math.log10(abs(value)) // 3), 0), 6) if abs(value) >= 1 else 0
    scaled = value / 1000.0**power
    if abs(scaled) >= 999.5 and power < 6:
        scaled, power = scaled / 1000, power + 1
    digits = max(0, 2 - int(math.log10(abs(scaled)))) if abs(scaled) >= 1 else 2
    exact = power == 0 and scaled == int(scaled)
    text = f"{scaled:.0f}" if exact else f"{scaled:.{digits}f}"
    return f"{text}{THIN}{' kMGTPE'[power]}" if power else text


def _share(value: float) -> str:
    """A percentage with one decimal, or two significant digits where that is below one percent."""
    if 1e-5 <= abs(value) < 0.00995:
        return f"{100 * value:#.2g}%".replace("-", MINUS)
    return f"{value:.1%}".replace("-", MINUS)


def _metric(value: float) -> str:
    """Four significant digits, all of them shown; a whole number as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:#.4g}".rstrip(".").replace("-", MINUS)


FORMATS: dict[str, Callable[[float], str]] = {
    "nats": _nats,
    "effect": _signed,
    "p": lambda x: f"{x:.1e}" if 0 < x < 0.001 else f"{x:.3f}",
    "share": _share,
    "level": lambda x: f"{100 * x:.6g}%",
    "count": lambda x: f"{x:,}",
    "letters": _letters,
    "bytes": lambda x: f"{_letters(x)}B" if abs(x) >= 1000 else f"{x}{THIN}B",
    "ms": lambda x: f"{x:,.1f}",
    "speed": lambda x: f"{x:,.1f}" if x < 1000 else f"{x:,.0f}",
    "seconds": lambda x: f"{x:,.0f}" if x >= 10 else f"{x:.1f}",
    "money": lambda x: f"${x:,.4g}",
    "times": lambda x: f"{x:.3g}×",  # noqa: RUF001
    "general": _general,
    "metric": _metric,
    "cents": lambda x: f"{x:,.2f}",
    "plain": str,
    "full": lambda x: json.dumps(x).replace("-", MINUS) if is_number(x) else str(x),
}
