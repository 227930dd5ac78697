"""The job generate: what it asks a model, what it prints where, and what it keeps."""

import io
import json
from types import SimpleNamespace

import pytest

from tests import cli
from tests.data.test_chat import CHATML


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model with a chat template, whose files advise to draw tokens."""
    path = cli.write_model(tmp_path_factory.mktemp("talker") / "m", seed=2, extra=("<|im_end|>",))
    (path / "chat_template.jinja").write_text(CHATML)
    advice = {"do_sample": True, "temperature": 0.6, "top_k": 40, "eos_token_id": 0}
    (path / "generation_config.json").write_text(json.dumps(advice))
    return path


def generate(workdir, model, *more):
    return cli.run(
        f"--workdir={workdir}", "--config.job=generate", f"--config.student.path={model}",
        "--config.generate.max_new_tokens=11", *more,
    )  # fmt: skip


def lines_of(workdir):
    return [json.loads(x) for x in (workdir / "samples.jsonl").read_text().splitlines()]


PROMPTS = "--config.generate.prompts=('the quick', 'a slow\\ndog', 'red fox')"


def test_prompts_and_texts_go_to_stdout_and_all_else_to_stderr(world, tmp_path):
    done = generate(tmp_path, world / "student", PROMPTS)
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path)
    assert [line["prompt"] for line in lines] == ["the quick", "a slow\ndog", "red fox"]
    marked = ["> the quick\n", "> a slow\n> dog\n", "> red fox\n"]
    expected = "".join(f"{m}{line['text']}\n\n" for m, line in zip(marked, lines, strict=True))
    assert done.stdout == expected
    assert "chat" not in done.stderr


@pytest.mark.parametrize("more", [(), ("--config.generate.temperature=1",)])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_terminal_sees_the_same_texts_as_they_are_written(
    world, tmp_path, monkeypatch, more, size
):
    more = (PROMPTS, f"--config.generate.batch_size={size}", *more)
    plain = generate(tmp_path / "a", world / "student", *more)
    monkeypatch.setattr(cli, "io", SimpleNamespace(StringIO=Terminal))
    live = generate(tmp_path / "b", world / "student", *more)
    assert live.returncode == plain.returncode == 0, live.stderr
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    shown = live.stdout.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert shown == plain.stdout
    assert all(x == "\n" or x.isprintable() for x in shown if ord(x) < 160)
    assert live.stdout.startswith("\x1b[2m> the quick\x1b[0m\n")


def test_a_chat_model_is_asked_in_its_template(talker, tmp_path):
    asked = generate(tmp_path / "a", talker, "--config.generate.prompts=red fox")
    assert asked.returncode == 0, asked.stderr
    assert "each text is a user's turn" in asked.stderr
    assert "--config.generate.temperature=0.6 --config.generate.top_p=1.0" in asked.stderr
    turns = [{"role": "user", "content": "red fox"}]
    same = generate(tmp_path / "b", talker, f"--config.generate.messages={json.dumps(turns)}")
    assert same.stdout == asked.stdout
    assert "user's turn" not in same.stderr
    rendered = repr("<|im_start|>user\nred fox<|im_end|>\n<|im_start|>assistant\n")
    by_hand = generate(
        tmp_path / "c", talker, "--config.generate.chat=false",
        f"--config.generate.prompts=({rendered},)",
    )  # fmt: skip
    texts = [lines_of(tmp_path / name)[0]["text"] for name in "abc"]
    assert texts[0] == texts[1] == texts[2]
    drawn = generate(
        tmp_path / "d", talker, "--config.generate.prompts=red fox",
        "--config.generate.temperature=0.6", "--config.generate.chat=false",
    )  # fmt: skip
    assert "draw" not in drawn.stderr
    assert by_hand.returncode == drawn.returncode == 0


def test_samples_of_a_training_run_continue_plain_texts(talker, flags, tmp_path):
    """Of a model with a template, too: what distilling changes is seen in running text."""
    done = cli.run(
        f"--workdir={tmp_path / 'run'}", *flags[2:], f"--config.teacher.path={talker}",
        "--config.student.init=copy", "--config.generate.prompts=red fox",
        "--config.generate.max_new_tokens=11",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain = generate(
        tmp_path / "g", talker, "--config.generate.prompts=red fox", "--config.generate.chat=false"
    )
    assert plain.returncode == 0
    teacher = next(x for x in lines_of(tmp_path / "run") if x["model"] == "teacher")
    assert teacher["text"] == lines_of(tmp_path / "g")[0]["text"]


MISTAKES = {
    "none": ((), "generate.prompts is empty"),
    "no template": (("--config.generate.chat=true", PROMPTS), "has no chat template"),
    "chat": (("--config.generate.chat=maybe", PROMPTS), "config.generate.chat is 'maybe'"),
    "top_p": (("--config.generate.top_p=0", PROMPTS), "config.generate.top_p is 0"),
    "too long": (("--config.generate.max_new_tokens=64", PROMPTS), "use at most 57 new"),
    "empty": (("--config.generate.prompts=('a', '')",), "prompt 2 is empty"),
    "file": (("--config.generate.prompts=@absent.txt",), "there is no such file"),
    "messages": (("--config.generate.messages=hi",), "config.generate.messages: not JSON"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, world, tmp_path):
    more, says = MISTAKES[name]
    done = generate(tmp_path / "w", world / "student", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert says in done.stderr.splitlines()[-1]


def test_a_template_that_fails_is_one_line(talker, tmp_path):
    turns = json.dumps([{"role": "user", "content": "a"}])
    (talker / "chat_template.jinja").write_text("{{ raise_exception('no\\nsystem') }}")
    done = generate(tmp_path / "w", talker, f"--config.generate.messages={turns}")
    (talker / "chat_template.jinja").write_text(CHATML)
    assert done.returncode == 2
    line = "error: config.generate.messages: the chat template fails on these messages (no system)"
    assert done.stderr.splitlines()[-1].startswith(line)
