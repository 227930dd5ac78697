"""How each arm and each verdict looks, in every chart and table of a report alike."""

from collections.abc import Sequence
from typing import Any

# charts.css has so many colors and dashes. Known arms always look the same; others follow in order.
COLORS, DASHES = 6, 6
KNOWN = {"kd": 0, "student": 0, "sft": 1, "sft_flops": 2, "random_teacher": 3, "scratch": 4}


def styles(names: Sequence[str]) -> dict[str, str]:
    """The classes of charts.css for each name. Up to 31 new arms, no two share color and dash."""
    own = [name for name in dict.fromkeys(names) if name not in KNOWN and name != "teacher"]
    numbers = KNOWN | {name: i for i, name in enumerate(own, 1 + max(KNOWN.values()))}
    classes = {name: f"c{i % COLORS} d{(i + i // COLORS) % DASHES}" for name, i in numbers.items()}
    return classes | {"teacher": "teacher"}


def arm_styles(report: dict[str, Any]) -> dict[str, str]:
    """The same for every model of a report, so that an arm looks alike in all of its charts."""
    names = [x["arm"] for part in ("arms", "curves") for x in report[part] or ()]
    return styles(names + [m["model"] for m in (report["calibration"] or {"models": ()})["models"]])


def tone(label: str) -> str:
    """good, bad or flat: how a verdict's label is colored. Its words and sign say the same."""
    if label.startswith(("WORSE", "NEW FAILURE", "INVALID")):
        return "bad"
    return "good" if label.startswith("HELPS") else "flat"
