"""What llama.cpp writes after the prompts of a generate job, beside what we wrote.

    python experiments/gguf/compare.py STUDENT.gguf SAMPLES.jsonl [--chat]

SAMPLES.jsonl is the answer of the job generate, greedy, with the same model. Needs
llama-cpp-python, built from its source package as README.md says; nothing of this project.
"""

import json
import sys
from pathlib import Path

from llama_cpp import Llama


def main(model, samples, *, chat):
    llama = Llama(model, n_ctx=512, n_threads=2, verbose=False, logits_all=True)
    same = likeliest = tokens = 0
    lines = [json.loads(line) for line in Path(samples).read_text(encoding="utf-8").splitlines()]
    for line in lines:
        asked = line["prompt"] if chat else [line["prompt"]]
        theirs = answer(llama, line, chat=chat)
        equal = theirs == line["text"]
        same += equal
        print(f"{'same ' if equal else 'OTHER'} {json.dumps(asked, ensure_ascii=False)[:60]}")
        if not equal:
            print(f"    we write:  {line['text']!r}\n    llama.cpp: {theirs!r}")
        right = agreements(llama, line, chat=chat)
        likeliest, tokens = likeliest + sum(right), tokens + len(right)
    print(f"{same} of {len(lines)} texts are the same")
    print(
        f"after our own text, {likeliest} of {tokens} of its tokens are llama.cpp's likeliest too"
    )


def answer(llama, line, *, chat):
    """Greedy text of as many tokens."""
    most = {"max_tokens": 32, "temperature": 0.0, "repeat_penalty": 1.0}
    if chat:
        turns = [{"role": "user", "content": line["prompt"]}]
        done = llama.create_chat_completion(turns, **most)
        return done["choices"][0]["message"]["content"]
    tokens = llama.tokenize(line["prompt"].encode(), add_bos=True, special=False)
    return llama.create_completion(tokens, **most)["choices"][0]["text"]


def agreements(llama, line, *, chat):
    """For each token of our text, whether llama.cpp finds it the likeliest after those before."""
    if chat:
        return []
    before = llama.tokenize(line["prompt"].encode(), add_bos=True, special=False)
    text = llama.tokenize(line["text"].encode(), add_bos=False, special=False)
    llama.reset()
    llama.eval(before + text)
    likeliest = llama.scores[len(before) - 1 : llama.n_tokens - 1].argmax(axis=-1)
    return [int(one) == other for one, other in zip(likeliest, text, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], chat="--chat" in sys.argv)
