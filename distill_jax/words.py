"""What people read in place of the names of report.json, on pages and in the tables of a terminal.

A name is a key: short, and the same for ever. WORDS and SLICES say what it means; a name that is in
neither (a user's arm, a benchmark's metric, a slice of another's scores) stands as it is.
"""

import re
from collections.abc import Callable

NEW_FAILURE = "NEW FAILURE MODE IN "  # a verdict's label, before the slice


def plural(number: float, word: str) -> str:
    """The number with its word.

    >>> plural(1, "seed"), plural(1200, "document")
    ('1 seed', '1,200 documents')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """How an error's text begins, for a line of one's own; its type where it has no text.

    >>> first_line(ValueError("no\\nlonger")), first_line(AssertionError())
    ('no', 'AssertionError')
    """
    # Not str.splitlines, which cuts the name of a file at U+2028.
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def cut(text: str) -> str:
    """What a line has room for of a value that somebody gave.

    >>> cut("7" * 5000) == "7" * 100 + "..."
    True
    """
    return text if len(text) <= 100 else f"{text[:100]}..."


def shortened(line: str) -> str:
    """A line in which no word, such as a path that somebody gave, is longer than 300 letters.

    >>> len(shortened("no file " + "a/" * 2000 + " is there"))
    317
    """
    return re.sub(r"\S{301,}", lambda found: f"{found[0][:297]}...", line)


def named(name: str) -> str:
    """The words for a metric, measure, cause, trigger or slice, a teacher's metric included.

    >>> named("rep_4"), named("teacher_nll"), named("frequency:1 of 10"), named("my own")
    ('repeated four-grams', "the teacher's NLL", 'rare tokens (least frequent tenth)', 'my own')
    """
    kind, colon, value = name.partition(":")
    if colon and kind in SLICES:
        return SLICES[kind](value) or name
    if name.startswith("teacher_") and name not in WORDS:
        own = WORDS.get(name.removeprefix("teacher_"))
        return f"the teacher's {own}" if own else name
    return WORDS.get(name, name)


def labelled(label: str) -> str:
    """A verdict's label with its slice in words."""
    if not label.startswith(NEW_FAILURE):
        return label
    return NEW_FAILURE + named(label.removeprefix(NEW_FAILURE))


def _frequency(value: str) -> str:
    """`3 of 10`, the first the rarest."""
    found = re.fullmatch(r"(\d+) of (\d+)", value)
    if not found:
        return ""
    place, parts = map(int, found.groups())
    part = {10: "tenth"}.get(parts, f"of {parts} parts")
    ends = {1: "", 2: "second ", 3: "third "}
    if place in ends:
        return f"rare tokens ({ends[place]}least frequent {part})"
    if parts + 1 - place in ends:
        return f"common tokens ({ends[parts + 1 - place]}most frequent {part})"
    return f"tokens of middle frequency ({part} {place} of {parts})"


def _range(value: str, between: str, above: str) -> str:
    """`17-32` or `4097 or more`, in whole tokens."""
    if found := re.fullmatch(r"(\d+)-(\d+)", value):
        return between.format(*(f"{int(end):,}" for end in found.groups()))
    found = re.fullmatch(r"(\d+) or more", value)
    return above.format(f"{int(found[1]):,}") if found else ""


def _entropy(value: str) -> str:
    """`below 0.1 nats`, `0.1-0.5 nats` or `4 nats or more`."""
    if value.startswith("below "):
        return f"where the teacher is nearly certain (entropy {value})"
    if value.endswith(" or more"):
        return f"where the teacher is most unsure (entropy {value})"
    low, _, high = value.partition("-")
    return f"where the teacher's entropy is {low} to {high}" if high else ""


SLICES: dict[str, Callable[[str], str]] = {  # kind -> from its value to words; empty: no such value
    "frequency": _frequency,
    "position": lambda value: _range(
        value, "tokens {} to {} of a document", "tokens of a document from {} on"
    ),
    "length": lambda value: _range(
        value, "documents of {} to {} tokens", "documents of {} tokens or more"
    ),
    "label": lambda value: f"documents labelled {value}",
    "entropy": _entropy,
}

WORDS: dict[str, str] = {
    # Metrics of held-out tokens.
    "nll": "NLL",
    "perplexity": "perplexity",
    "accuracy_top1": "likeliest token is right",
    "entropy": "entropy",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
    "confident_and_wrong": "sure and wrong",
    "forward_kl": "KL to the teacher",
    "reverse_kl": "reverse KL to the teacher",
    "agreement_top1": "likeliest token is the teacher's",
    "overlap_top5": "five likeliest tokens shared with the teacher",
    "right_to_wrong": "teacher right, student wrong",
    "wrong_to_right": "teacher wrong, student right",
    "acceptance": "tokens accepted in speculative decoding",
    "entropy_gap": "entropy above the teacher's",
    "tokens": "tokens measured",
    "all": "all tokens",  # as a slice
    # Measures of a study that are no metrics.
    "kl_to_teacher": "KL to the teacher",
    "scorer": "the score of your scorer",
    # What models write.
    "rep_4": "repeated four-grams",
    "distinct_1": "distinct tokens",
    "distinct_2": "distinct pairs of tokens",
    "distinct_3": "distinct triples of tokens",
    "truncated": "texts cut off at the limit",
    "length_ratio": "length against the data's",
    "exact_match": "exact answers",
    "verified": "the score of your scorer",
    "rouge_l": "overlap with the data (ROUGE-L)",
    "memorised": "copied from the training text",
    "kl_own": "KL to the teacher on own text",
    "kl_data": "KL to the teacher on the data",
    "exposure_gap": "KL that writing on own text adds",
    # Causes of divergence.
    "teacher_wrong": "the teacher misleads",
    "distillation_made": "lost by distilling",
    "capacity": "beyond a student of this size",
    "student_wrong": "the student is wrong, the teacher right",
    "tail": "unlikely tokens",
    "other": "no single cause",
    # Triggers of advice.
    "effect_equal_flops": "distance behind plain fine-tuning at equal FLOPs",
    "seeds_missing": "seeds that are missing",
    "harmed_slices": "slices that are harmed",
    "teacher_gap": "NLL above the teacher's",
    "share_teacher_wrong": "share of the hot tokens' KL where the teacher misleads",
    "share_distillation_made": "share of the hot tokens' KL that was lost by distilling",
    "share_capacity": "share of the hot tokens' KL beyond a student of this size",
    "share_student_wrong": "share of the hot tokens' KL where only the student is wrong",
    "share_tail": "share of the hot tokens' KL about unlikely tokens",
    "rare_kl_ratio": "KL of the rarest tenth of tokens, times its share",
    "overconfidence": "confidence less accuracy, above the teacher's",
    "ece_excess": "calibration error above the teacher's",
    "exposure_share": "KL that writing on own text adds, as a share",
    "late_fall": "fall of the NLL over the last quarter",
    "late_rise": "rise of the NLL since its lowest",
    "best_step": "step of the lowest NLL",
}
