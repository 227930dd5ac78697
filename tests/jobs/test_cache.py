"""The job cache and training from it, on the command line."""

import json
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from distill_jax.data.cache_files import MANIFEST, read_manifest, write_sealed
from distill_jax.models.load import load_checkpoint
from distill_jax.models.weights import fingerprint
from tests import cli


def losses(workdir):
    return [line["train/loss"] for line in cli.metrics(workdir) if "train/loss" in line]


def said(done):
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def live(flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    said(cli.run(f"--workdir={root / 'run'}", *flags))
    return root / "run"


@pytest.fixture(scope="module")
def caches(flags, tmp_path_factory):
    """One cache of each kind, in full precision."""
    root = tmp_path_factory.mktemp("caches")
    for kind in ("hidden", "top_k"):
        out = said(
            cli.run(
                f"--workdir={root / kind}", *flags, "--config.job=cache",
                f"--config.teacher.targets={kind}", "--config.cache.dtype=float32",
                "--config.teacher.k=10000",
            )
        )  # fmt: skip
        assert "bytes per token" in out
        assert "KL(stored || teacher)" in out
    return root


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_a_cached_run_is_the_live_run(flags, live, caches, tmp_path, kind):
    more = ("--config.teacher.policy=tail_bucket",) if kind == "top_k" else ()
    cached = f"--config.teacher.cache={caches / kind}"
    said(cli.run(f"--workdir={tmp_path / 'r'}", *flags, cached, *more))
    np.testing.assert_allclose(losses(tmp_path / "r"), losses(live), atol=1e-4)
    last = lambda d: json.loads((d / "report.json").read_text())["eval/forward_kl"]
    np.testing.assert_allclose(last(tmp_path / "r"), last(live), atol=1e-4)


def test_a_cache_of_hidden_states_needs_no_teacher_and_serves_any_seed_and_mesh(
    flags, caches, tmp_path
):
    alone = [flag for flag in flags if "teacher.path" not in flag]
    alone += [f"--config.teacher.cache={caches / 'hidden'}", "--config.seed=3"]
    out = said(cli.run(f"--workdir={tmp_path / 'one'}", *alone))
    assert "teacher" in out
    said(cli.run_process(f"--workdir={tmp_path / 'eight'}", *alone, "--config.mesh.fsdp=4",
                 "--config.mesh.tensor=2", devices=8))  # fmt: skip
    np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-5)


def test_a_killed_job_goes_on_and_a_finished_one_has_nothing_to_do(flags, tmp_path):
    command = cli.command(
        f"--workdir={tmp_path / 'c'}",
        *flags,
        "--config.job=cache",
        "--config.cache.shard_tokens=64",
    )
    process = subprocess.Popen(
        command, cwd=cli.ROOT, env=cli.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list((tmp_path / "c").glob("shard-00003*.array_record")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest = said(cli.run(*command[4:], config="configs/base.py"))
    assert "wrote" in rest
    again = said(cli.run(*command[4:], config="configs/base.py"))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())["content"]
    assert f"{manifest['tokens']:,} tokens are there already" in again
    keys = [
        key
        for path in (tmp_path / "c").glob("*.index.json")
        for key in json.loads(path.read_text())["content"]["keys"]
    ]
    assert len(keys) == len(set(keys)) == manifest["pieces"]


def test_a_stopped_job_has_saved_what_it_had(flags, tmp_path, monkeypatch):
    words = (f"--workdir={tmp_path}", *flags, "--config.job=cache")
    with monkeypatch.context() as patch:
        patch.setattr("distill_jax.jobs.cache.saving", cli.stop_asked)
        stopped = cli.run(*words)
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by a signal after saving what the teacher gave so far" in stopped.stderr
    out = said(cli.run(*words))
    assert "tokens are there already" in out
    assert "wrote" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--config.teacher.cache=/nowhere",), "holds no teacher cache"),
        (("--config.data.seq_len=24",), "config.data.seq_len is 24: use 32"),
        (("--config.teacher.path={other}",), "was made with another teacher"),
        (("--config.teacher.more=('x',)",), "holds one teacher"),
        (("--config.data.source={text}",), "pieces of this text: run the job cache again"),
        (("--config.teacher.cache={top_k}",), "choose how to treat the mass outside the top k"),
        (
            ("--config.teacher.cache={top_k}", "--config.teacher.policy=truncate",
             "--config.terms.forward_kl.temperature=2."),
            "make targets for it",
        ),
        (
            ("--config.teacher.cache={top_k}", "--config.teacher.policy=renormalise",
             "--config.terms.reverse_kl.weight=1."),
            "reverse_kl is infinite",
        ),
    ],
)  # fmt: skip
def test_what_a_cache_cannot_serve_is_one_line(flags, caches, world, tmp_path, change, message):
    cli.write_model(tmp_path / "other", seed=8, width=24, blocks=3)
    cli.write_text(tmp_path / "text.jsonl", seed=5)
    places = {"other": tmp_path / "other", "text": tmp_path / "text.jsonl", **{
        "top_k": caches / "top_k"}}  # fmt: skip
    change = [flag.format(**places) for flag in change]
    arguments = [*flags, f"--config.teacher.cache={caches / 'hidden'}", *change]
    done = cli.run(f"--workdir={tmp_path / 'w'}", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_damaged_cache_is_one_line(flags, caches, tmp_path):
    shutil.copytree(caches / "hidden", tmp_path / "c")
    path = next((tmp_path / "c").glob("*.array_record"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    done = cli.run(
        f"--workdir={tmp_path / 'w'}", *flags, f"--config.teacher.cache={tmp_path / 'c'}"
    )
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refused_job_leaves_another_teachers_cache_whole(flags, caches, tmp_path):
    cli.write_model(tmp_path / "other", seed=8, width=24, blocks=3)
    shutil.copytree(caches / "hidden", tmp_path / "c")
    (tmp_path / "c" / "config.json").unlink()
    head = (tmp_path / "c" / "head.npz").read_bytes()
    done = cli.run(
        f"--workdir={tmp_path / 'c'}", *flags, "--config.job=cache", "--config.cache.dtype=float32",
        f"--config.teacher.path={tmp_path / 'other'}",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "c" / "head.npz").read_bytes() == head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--config.teacher.weights=(1.,2.)",), "2 numbers for 1 teachers"),
        (("--config.teacher.targets=top_k",), "config.teacher.policy is ''"),
        (("--config.teacher.targets=hiden",), "did you mean hidden?"),
        (("--config.teacher.mix=log",), "did you mean logits?"),
        (("--config.teacher.average_decay=1.",), "use 0 to 0.999999"),
        (("--config.terms.jsd.weight=1.", "--config.terms.jsd.beta=0."), "ends use forward_kl"),
        (("--config.terms.forward_kl.schedule=linear",), "forward_kl.schedule is 'linear'"),
        (
            ("--config.teacher.targets=sampled", "--config.terms.forward_kl.temperature=2."),
            "draws at temperature 1",
        ),
    ],
)
def test_mistakes_about_teachers_and_terms_are_one_line(flags, tmp_path, change, message):
    done = cli.run(f"--workdir={tmp_path / 'w'}", *flags, *change)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_several_teachers_an_average_and_schedules_train_and_resume(flags, world, tmp_path):
    cli.write_model(tmp_path / "second", seed=4, width=16)
    more = (
        f"--config.teacher.more=('average','{tmp_path / 'second'}')",
        "--config.teacher.weights=(0.5,0.2,0.3)",
        "--config.terms.taid.weight=1.",
        "--config.terms.forward_kl.schedule=cosine:0.1",
        "--config.terms.cross_entropy.schedule=steps:2=0.5",
    )
    said(cli.run(f"--workdir={tmp_path / 'w'}", *flags, *more))
    shutil.copytree(tmp_path / "w", tmp_path / "again")
    for path in (tmp_path / "again" / "checkpoints").glob("step_6"):
        shutil.rmtree(path)
    (tmp_path / "again" / "report.json").unlink()
    out = said(cli.run(f"--workdir={tmp_path / 'again'}", *flags, *more))
    assert "resuming from step 4" in out
    assert losses(tmp_path / "again") == losses(tmp_path / "w")


def test_a_cache_of_a_former_version_is_known_by_the_hash_over_its_teachers_parameters(
    flags, caches, world, tmp_path
):
    """The job takes it for its own, and a run trains from it; of other weights it is another's."""
    directory = shutil.copytree(caches / "hidden", tmp_path / "cache")
    manifest = read_manifest(directory)
    assert manifest.hashes["teacher"].startswith("files:")
    read = load_checkpoint(str(world / "teacher"), dtype="float32")
    former = {"teacher": fingerprint(read.params)}
    again = (
        "--config.job=cache", "--config.teacher.targets=hidden", "--config.cache.dtype=float32",
        "--config.teacher.k=10000",
    )  # fmt: skip
    for known, code in ((former, 0), ({"teacher": "0" * 64}, 2)):
        changed = manifest._replace(hashes=manifest.hashes | known)
        write_sealed(directory / MANIFEST, changed._asdict())
        done = cli.run(f"--workdir={directory}", *flags, *again)
        assert done.returncode == code, done.stderr
        cached = f"--config.teacher.cache={directory}"
        done = cli.run(f"--workdir={tmp_path / f'run{code}'}", *flags, cached)
        assert done.returncode == code, done.stderr
