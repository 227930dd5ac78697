"""Every family on the command line: trained, exported, evaluated as transformers does."""

import json

import numpy as np
import pytest
import torch
import transformers

from distill_jax.data.tokenizer import save_tokenizer
from distill_jax.models.families import FAMILIES
from tests import cli
from tests.models.conftest import SIZES

# Letters of several scripts, of several widths, in two normal forms, and beyond two bytes.
TEXTS = [
    "the quick red fox, ein süßer Fuchs, 狐狸很快 \U0001f98a",
    "naïve café, Ωmega; a slow blue cat runs over the old tree",
    "the lazy dog sleeps under a tree; плавно, быстро",
    "\uff46\uff55\uff4c\uff4c width and e\u0301 combined, a cat jumps near",
]


def widest(family):
    """The variant that sets most keys of config.json."""
    return max(FAMILIES[family].variants.values(), key=len)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A directory of a family, with a tokenizer, as transformers writes it."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = cli.make_tiny_tokenizer()
    torch.manual_seed(1)
    sizes = {**SIZES, **widest(request.param), "vocab_size": tokenizer.vocab_size}
    sizes["max_position_embeddings"] = 128
    config = transformers.AutoConfig.for_model(request.param, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root)
    save_tokenizer(tokenizer, root)
    return root


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of the texts."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def reference(directory):
    """A plain loop over documents with transformers: mean NLL and predicted tokens."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    # AutoTokenizer takes a family's own class, which normalizes by its own rules.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    nll = []
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            log_q = oracle(ids).logits[0, :-1].double().log_softmax(-1)
        nll.append(-log_q.gather(1, ids[0, 1:, None])[:, 0])
    nll = torch.cat(nll)
    return nll.mean().item(), len(nll)


def test_a_student_learns_is_exported_and_evaluated_as_by_transformers(model, text, tmp_path):
    result = cli.run(
        f"--workdir={tmp_path / 'run'}", f"--config.student.path={model}",
        "--config.terms.forward_kl.weight=0", "--config.terms.cross_entropy.weight=1",
        f"--config.data.source={text}", f"--config.data.eval_source={text}",
        "--config.data.seq_len=128", "--config.data.batch_size=1", "--config.steps=4",
        "--config.eval.every=4", "--config.optim.warmup_steps=1",
        "--config.optim.learning_rate=0.003",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, last = (m["eval/nll"] for m in cli.metrics(tmp_path / "run") if "eval/nll" in m)
    assert last < first - 0.1
    student = tmp_path / "run" / "student"
    result = cli.run(
        f"--workdir={tmp_path / 'evaluated'}", "--config.job=evaluate",
        f"--config.student.path={student}", f"--config.data.eval_source={text}",
        "--config.data.seq_len=128",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "evaluated" / "report.json").read_text())
    nll, count = reference(student)
    assert report["eval/tokens"] == count
    np.testing.assert_allclose([last, report["eval/nll"]], nll, atol=1e-4)
