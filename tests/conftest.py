import pytest

from tests import cli


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A teacher, a smaller student of the same tokenizer, and text."""
    root = tmp_path_factory.mktemp("world")
    cli.write_model(root / "teacher", seed=1, width=24, blocks=3)
    cli.write_model(root / "student", seed=2)
    cli.write_text(root / "text.jsonl")
    return root


@pytest.fixture(scope="session")
def flags(world):
    """The flags of a small training run of that world."""
    return (
        f"--config.teacher.path={world / 'teacher'}",
        f"--config.student.path={world / 'student'}",
        f"--config.data.source={world / 'text.jsonl'}",
        *cli.SMALL,
    )
