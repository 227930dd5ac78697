"""What a study is judged by: the registered measure, and those that are reported beside it."""

from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.study.results import Measure
from distill_jax.study.rules import NLL
from distill_jax.types import UserError

LIKELIHOOD, KL, SCORER = "nll", "kl_to_teacher", "scorer"
COLUMNS = {LIKELIHOOD: "nll", KL: "forward_kl"}  # of the per-token records


def measures_of(c: ConfigDict) -> tuple[Measure, ...]:
    """Every measure that the config asks for, config.study.measure first.

    The unit and direction of a task are known only once it has run. Raises UserError for a measure
    that the config does not measure.
    """
    known = [Measure(LIKELIHOOD, NLL)]
    if c.teacher.path or c.teacher.cache:
        known.append(Measure(KL, NLL))
    if c.study.scorer:
        known.append(Measure(SCORER, "score per example", higher_is_better=True))
    elif c.study.measure == SCORER:
        raise UserError(
            "config.study.measure is scorer and config.study.scorer is empty: give"
            " --config.study.scorer=FILE.py:FUNCTION"
        )
    known += [Measure(task, "score per example", higher_is_better=True) for task in c.eval.tasks]
    by_name = {measure.name: measure for measure in known}
    task = c.study.measure.split("/", 1)[0]
    # TASK/METRIC names one metric of a task; the other measures have no metrics to choose from.
    name = task if task in c.eval.tasks else c.study.measure
    first = by_name[choose("study.measure", name, by_name)]
    rest = tuple(measure for measure in known if measure != first)
    return (first._replace(name=c.study.measure), *rest)
