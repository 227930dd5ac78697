import pytest
import transformers

from distill_jax.data.chat import render_messages, render_with_spans
from distill_jax.data.documents import Document
from distill_jax.data.tokenizer import save_tokenizer
from distill_jax.types import UserError
from tests.tokens import tokenize_documents

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""
# Headers, a date, trimmed contents, and no white space between turns.
HEADERS = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content | trim -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
<|im_start|>system\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n{{ system }}<|im_end|>
{%- for m in turns -%}
{{- '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n\n' -}}{%- endif -%}"""
# Earlier answers lose their reasoning; the last one gets an empty one if it has none.
THINKING = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last -%}
{%- set content = '<think>\n' + thought + '\n</think>\n\n' + content -%}
{%- endif -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
# The system prompt becomes part of the first user turn; roles must alternate.
FOLDING = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set prefix = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Roles must alternate') -}}
{%- endif -%}
{%- set role = 'model' if m.role == 'assistant' else m.role -%}
{%- set content = (prefix if loop.first else '') + m.content | trim -%}
{{- '<|im_start|>' + role + '\n' + content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>model\n' -}}{%- endif -%}"""
# The generation prompt opens a thought that earlier turns do not show.
OPEN_THOUGHT = """\
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|im_start|>A:' + m.content.split('</think>')[-1] + '<|im_end|>' -}}
{%- else -%}{{- '<|im_start|>U:' + m.content -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>A:<think>\n' -}}{%- endif -%}"""
# No token closes a turn but the end of text after the last one.
PLAIN = """\
{%- for m in messages -%}
{{- '[' + m.role + '] ' + m.content + ('<|endoftext|>' if loop.last else '\n') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[assistant] ' -}}{%- endif -%}"""
# Indented blocks on lines of their own leave nothing behind.
INDENTED = """\
{% for m in messages %}
    {% if m.role == 'assistant' %}
A: {{ m.content }}<|im_end|>
    {% else %}
U: {{ m.content }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}A: {% endif %}"""

SYSTEM = {"role": "system", "content": "Be brief."}
SHORT = [{"role": "user", "content": "Hi 12"}, {"role": "assistant", "content": "Hello 34!"}]
LONG = [
    *SHORT,
    {"role": "user", "content": "And é?"},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\n\U0001f600 fine"},
]
THOUGHT = "<think>\nso\n</think>\n\n\U0001f600 fine"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
END = "<|im_end|>"

CASES = {
    "chatml": (CHATML, [SYSTEM, *LONG], [f"Hello 34!{END}", f"{THOUGHT}{END}"]),
    "headers": (HEADERS, [SYSTEM, *LONG], [f"Hello 34!{END}", f"{THOUGHT}{END}"]),
    "thinking": (THINKING, [SYSTEM, *LONG], [f"Hello 34!{END}", f"{THOUGHT}{END}"]),
    "thinking, none": (THINKING, SHORT, [f"{EMPTY_THOUGHT}Hello 34!{END}"]),
    "thinking, earlier": (
        THINKING,
        [*LONG, *SHORT],
        [f"Hello 34!{END}", f"\U0001f600 fine{END}", f"{EMPTY_THOUGHT}Hello 34!{END}"],
    ),
    "folding": (FOLDING, [SYSTEM, *LONG], [f"Hello 34!{END}", f"{THOUGHT}{END}"]),
    "open thought": (OPEN_THOUGHT, LONG, [f"Hello 34!{END}", f"\n\n\U0001f600 fine{END}"]),
    "plain": (PLAIN, LONG, ["Hello 34!", f"{THOUGHT}<|endoftext|>"]),
    "indented": (INDENTED, LONG, [f"Hello 34!{END}", f"{THOUGHT}{END}"]),
    "assistant first": (CHATML, [SHORT[1], *SHORT], [f"Hello 34!{END}"] * 2),
    "empty answer": (CHATML, [{"role": "assistant", "content": ""}], [END]),
    "spaced answer": (HEADERS, [{"role": "assistant", "content": " a "}], [f"a{END}"]),
    "generation tag": (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
        SHORT,
        [f"Hello 34!{END}"],
    ),
}


def spans_of(tokenizer, messages, name="here"):
    document = Document(name, "x", messages=tuple(messages))
    return next(render_with_spans(tokenizer, [document]))


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def test_spans_are_what_the_assistant_wrote(make_small, case):
    template, messages, spans = case
    rendered = spans_of(make_small("smollm", chat_template=template), messages)
    assert [rendered.text[slice(*span)] for span in rendered.assistant_spans] == spans


def test_rendering_is_that_of_transformers(tmp_path, make_small, case):
    template, messages, _ = case
    if "strftime_now" in template:
        template = template.replace("{{ strftime_now('%d %b %Y') }}", "x")
    ours = make_small("smollm", chat_template=template)
    save_tokenizer(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (False, True):
        text = render_messages(ours, messages, add_generation_prompt=prompt, where="here")
        assert text == theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=False
        )
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
        assert ours.backend.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize("name", ["smollm", "gpt-2", "llama-bpe", "qwen2", "gemma"])
def test_trained_tokens_are_exactly_the_spans(make_small, name, case):
    template, messages, spans = case
    tokenizer = make_small(name, chat_template=template)
    tokenized = tokenize_documents([Document("d", "x", messages=tuple(messages))], tokenizer)
    rendered = spans_of(tokenizer, messages)
    whole = tokenizer.backend.encode(rendered.text, add_special_tokens=False).ids
    assert tokenized.tokens.tolist() == whole
    trained = tokenized.tokens[tokenized.trained == 1].tolist()
    text = tokenizer.backend.decode(trained, skip_special_tokens=False)
    # A token may reach over the edge of a span only with white space.
    assert text.replace(" ", "").replace("\n", "") == "".join(spans).replace(" ", "").replace(
        "\n", ""
    )


def test_messages_are_not_changed_by_a_template(make_small):
    tokenizer = make_small("smollm", chat_template="{{ messages.append(1) }}")
    with pytest.raises(UserError, match="chat template fails"):
        render_messages(tokenizer, SHORT, add_generation_prompt=False, where="here")
    assert len(SHORT) == 2


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (None, SHORT, "no chat template"),
        (CHATML, SHORT[:1], "no assistant turn among the roles"),
        (FOLDING, SHORT[::-1], "Roles must alternate"),
        ("{% for %}", SHORT, "chat template fails"),
        ("{{ messages[9].content + 1 }}", SHORT, "chat template fails"),
        ("{{ ''.__class__.__mro__ }}", SHORT, "chat template fails"),
        ("{{ messages[0].content }}", SHORT, "turn 1, of the assistant, cannot be found"),
        ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", SHORT, None),
        ("{{ messages[1].content|length }}", SHORT, "cannot be found"),
    ],
)
def test_what_a_template_cannot_do_is_one_line(make_small, template, messages, says):
    tokenizer = make_small("smollm", chat_template=template)
    if says is None:
        assert spans_of(tokenizer, messages).assistant_spans
        return
    with pytest.raises(UserError, match=says) as caught:
        spans_of(tokenizer, messages, "file:3")
    assert str(caught.value).startswith("file:3: ")
    assert "\n" not in str(caught.value)


def test_an_assistant_that_says_nothing_is_an_error(make_small):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": ""})
    with pytest.raises(UserError, match="file:3: "):
        tokenize_documents(
            [Document("file:3", "x", messages=messages)],
            make_small("smollm", chat_template=template),
        )


def test_the_same_messages_give_the_same_text_on_every_day(make_small):
    tokenizer = make_small("smollm", chat_template="{{ strftime_now('%Y-%m-%d') }}")
    text = render_messages(tokenizer, SHORT, add_generation_prompt=False, where="here")
    assert text == "2024-07-26"
