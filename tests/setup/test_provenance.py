"""A run goes on with the text that it began with, or says that it is another."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests import cli


def test_a_text_that_was_changed_is_noticed_when_a_run_goes_on(tmp_path):
    teacher = cli.write_model(tmp_path / "teacher")
    student = cli.write_model(tmp_path / "student", seed=1)
    data, workdir = tmp_path / "text.parquet", tmp_path / "run"
    texts = [cli.sentence(cli.np.random.default_rng(i)) for i in range(60)]

    def train(steps):
        pq.write_table(pa.table({"text": texts}), data)  # without checksums
        return cli.run(
            *cli.SMALL, f"--config.steps={steps}", f"--config.teacher.path={teacher}",
            f"--config.student.path={student}", f"--config.data.source={data}",
            f"--workdir={workdir}",
        )  # fmt: skip

    assert train(2).returncode == 0
    before = texts[7]
    texts[7] = before.upper()
    changed = train(4)
    assert changed.returncode == 2
    assert changed.stderr.count("\n") == 1
    assert "is not what" in changed.stderr
    assert "provenance.json" in changed.stderr
    texts[7] = before
    assert train(4).returncode == 0
