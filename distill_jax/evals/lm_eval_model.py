"""Our models in EleutherAI's lm-evaluation-harness, as they are, without an export.

The package lm_eval is optional and is imported only where it is used.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from distill_jax.data.chat import render_messages
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.evals.log_likelihoods import log_likelihoods, make_score_step
from distill_jax.models.binding import Model
from distill_jax.sampling import generate, make_continue
from distill_jax.types import Advance, Params, UserError, silent

INSTALL = "pip install 'lm_eval>=0.4.13'"
NEW_TOKENS = 256  # where a task does not say how much may be written; the harness' own default


class Request(NamedTuple):
    """One text to be continued: its token ids, what ends it, and how it is drawn."""

    prompt: list[int]
    until: list[str]
    new_tokens: int
    temperature: float


def written(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    stop_ids: tuple[int, ...],
    batch_size: int,
    cache_dtype: str,
) -> list[str]:
    """The text after each prompt, up to and without the first of its `until` strings.

    A prompt that leaves no room for its new tokens loses tokens from the left.
    """
    groups: dict[tuple[int, float], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.new_tokens, request.temperature), []).append(i)
    texts = [""] * len(requests)
    for (new_tokens, temperature), members in groups.items():
        room = model.config.max_positions - new_tokens
        if room < 1:
            raise UserError(
                f"a task wants {new_tokens} new tokens and the model has"
                f" {model.config.max_positions} positions: set max_gen_toks of the task lower"
            )
        members.sort(key=lambda i: len(requests[i].prompt))  # so that rows of a batch are alike
        program = make_continue(
            model,
            max_new_tokens=new_tokens,
            temperature=temperature,
            stop_ids=stop_ids,
            cache_dtype=cache_dtype,
        )
        prompts = [requests[i].prompt[-room:] for i in members]
        new = generate(program, params, prompts, jax.random.key(0), batch_size=batch_size)
        for i, ids in zip(members, new, strict=True):
            texts[i] = _cut(tokenizer.backend.decode(list(ids)), requests[i].until)
    return texts


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop, 1)[0] if stop else text
    return text


def request_of(prompt: list[int], options: dict[str, Any]) -> Request:
    """A generation request of the harness. Raises UserError for sampling that is not offered."""
    sizes = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    new_tokens = next((options[k] for k in sizes if options.get(k) is not None), NEW_TOKENS)
    temperature = float(options.get("temperature") or 0)
    if options.get("do_sample") is False:
        temperature = 0.0
    cuts = [k for k in ("top_k", "top_p", "min_p") if options.get(k) not in (None, 0, 1)]
    if temperature and cuts:
        raise UserError(
            f"a task samples with {', '.join(cuts)}, which is not offered: use greedy decoding or"
            " temperature alone"
        )
    until = options.get("until") or []
    return Request(prompt, [until] if isinstance(until, str) else until, new_tokens, temperature)


def make_lm_eval_model(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 8,
    stop_ids: tuple[int, ...] | None = None,
    cache_dtype: str = "float32",
    block_tokens: int = 256,
    advance: Advance = silent,
) -> Any:
    """An lm_eval.api.model.LM of a model on one process; to be given to lm_eval.simple_evaluate.

    advance: told of every batch of likelihoods. Raises UserError where lm_eval is not installed.
    """
    harness = harness_package()
    score_step = make_score_step(model, block_tokens=block_tokens)
    max_length = model.config.max_positions
    end_ids = stop_ids or (tokenizer.eos_id,)
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    begin_text = tokenizer.backend.decode([begin], skip_special_tokens=False)

    class HarnessModel(harness.api.model.TemplateLM):
        """Tokens and texts of the harness, answered by the functions above."""

        eot_token_id = tokenizer.eos_id
        prefix_token_id = begin
        tokenizer_name = tokenizer.fingerprint

        def tok_encode(self, string, add_special_tokens=None, **_):
            special = add_special_tokens
            if special is None:
                special = not (begin_text and string.startswith(begin_text))
            ids = tokenizer.backend.encode(string, add_special_tokens=special).ids
            return ids[:-1] if special and tokenizer.adds_eos else ids

        def _loglikelihood_tokens(self, requests, **_):
            pairs = [(context, continuation) for _, context, continuation in requests]
            sizes = {"batch_size": batch_size, "max_length": max_length}
            found = log_likelihoods(score_step, params, pairs, **sizes, advance=advance)
            for (key, *_), answer in zip(requests, found, strict=True):
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answer)
            return found

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            windows, owners = [], []
            for i, request in enumerate(requests):
                for window in harness.utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=begin,
                    max_seq_len=max_length,
                    context_len=1,
                ):
                    windows.append((None, *harness.utils.make_disjoint_window(window)))
                    owners.append(i)
            totals = [0.0] * len(requests)
            for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
                totals[i] += value
            for request, total in zip(requests, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return totals

        def generate_until(self, requests, disable_tqdm=False):
            # An empty prompt begins as a text does.
            arguments = [request.args for request in requests]
            wanted = [
                request_of(self.tok_encode(x) or [begin], options) for x, options in arguments
            ]
            texts = written(
                model,
                params,
                tokenizer,
                wanted,
                stop_ids=end_ids,
                batch_size=batch_size,
                cache_dtype=cache_dtype,
            )
            for own, text in zip(arguments, texts, strict=True):
                self.cache_hook.add_partial("generate_until", own, text)
            return texts

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            text = render_messages(
                tokenizer,
                chat_history,
                add_generation_prompt=add_generation_prompt,
                where="a task of lm_eval",
            )
            if add_generation_prompt:
                return text
            # The model continues the last message, so the tokens that close it are left out.
            last = chat_history[-1]["content"].strip()
            return text[: text.rindex(last) + len(last)]

        def chat_template(self, chat_template=False):
            return tokenizer.chat_template or ""

    return HarnessModel()


def harness_package() -> Any:
    """The package lm_eval. Raises UserError where it is not installed."""
    try:
        import lm_eval.api.model
        import lm_eval.utils
    except ImportError as error:
        raise UserError(f"benchmarks need the package lm_eval ({error}): {INSTALL}") from error
    return lm_eval
