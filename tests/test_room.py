"""The search for the most rows that a chip has room for, with a compiler that is a formula."""

import pytest

from experiments.tpu_compiler import run


# From none to more than it begins with.
@pytest.mark.parametrize("room", [0, 1, 7, 8, 104, 300])
@pytest.mark.parametrize("form", run.FORMS)
def test_most_rows_are_found(monkeypatch, form, room):
    lines = []

    def measure(pair, topology, form, rows):
        line = {"pair": pair, "topology": topology, "form": form, "rows_per_chip": rows}
        return line | ({"refused": "Ran out of memory"} if rows > room else {"bytes": 1})

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run, "read", lambda: list(lines))
    monkeypatch.setattr(run, "write", lines.append)
    run.search("qwen", "v5e:4x4", form)

    fits = {line["rows_per_chip"]: "bytes" in line for line in lines}
    most = max((rows for rows, fit in fits.items() if fit), default=0)
    assert run.NEXT * room - 1 < most <= room
    more = min(rows for rows, fit in fits.items() if not fit)
    assert more - most <= max(1, (1 - run.NEXT) * more + 1)
    kept = len(lines)
    run.search("qwen", "v5e:4x4", form)
    assert len(lines) == kept  # nothing is compiled again
