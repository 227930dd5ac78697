"""Tools, given turns and pairs through templates, against transformers' text and its own mask."""

import json

import pytest
import transformers

from distill_jax.data.chat import render_messages, render_with_spans
from distill_jax.data.documents import Document, as_chat
from distill_jax.data.records import document_from_record
from distill_jax.data.tokenizer import save_tokenizer
from distill_jax.types import UserError
from tests.tokens import tokenize_documents

# A system prompt of its own where there is none, tools in it, calls as JSON, answers of tools as
# turns of a user.
DEFAULT_SYSTEM = """\
{%- set first = messages[0] -%}
{{- '<|im_start|>system\n' + (first.content if first.role == 'system' else 'You help.') }}
{%- if tools %}{{- '\n\nTools:' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}{%- endif %}
{{- '<|im_end|>\n' }}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<result>\n' + m.content + '\n</result>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant' }}{{- '\n' }}{% generation %}
{%- if m.content %}{{- m.content }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{%- set f = call.function if call.function else call %}
{%- if not loop.first or m.content %}{{- '\n' }}{%- endif %}
{{- '<call>\n{"name": "' + f.name + '", "arguments": ' }}
{{- f.arguments | tojson }}{{- '}\n</call>' }}
{%- endfor %}{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- elif m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# Thoughts are kept after the last question of a user alone; the last turn always has one.
REWRITING = """\
{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}{% generation %}
{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}
{{- content }}
{%- for call in m.tool_calls or [] %}
{%- if content or not loop.first %}{{- '\n' }}{%- endif %}
{%- set f = call.function if call.function else call %}
{{- '<call>' + f.name + ' ' }}
{%- if f.arguments is string %}{{- f.arguments }}{%- else %}{{- f.arguments | tojson }}{%- endif %}
{{- '</call>' }}
{%- endfor %}{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n[' + content + ']<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# Calls only where the content is none, with the arguments as text between strings.
JOINED = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.content is none %}
{{- '[assistant]' }}{% generation %}
{%- for call in m.tool_calls %}
{{- 'call ' + call['function']['name'] + '\n' + call['function']['arguments'] + '\n' }}
{%- endfor %}{{- '<|im_end|>' }}{% endgeneration %}
{%- elif m.role == 'assistant' %}
{{- '[assistant]' }}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- '[' + m.role + ']' + m.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
TEMPLATES = {"default system": DEFAULT_SYSTEM, "rewriting": REWRITING, "joined": JOINED}

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}]
KOELN = '{"city": "Köln"}'


def call(arguments):
    return {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def said(role, content):
    return {"role": role, "content": content}


CALLS = [
    said("user", "Rain in Köln?"),
    {"role": "assistant", "content": None, "tool_calls": [call(KOELN)]},
    {"role": "tool", "tool_call_id": "1", "content": "rain 12"},
    said("assistant", "Yes, it rains."),
]
RECORDS = {
    "calls": {"messages": CALLS, "tools": TOOLS},
    "absent content": {
        "messages": [CALLS[0], {"role": "assistant", "tool_calls": [call(KOELN)]}],
    },
    "two calls, one more question": {
        "messages": [
            CALLS[0],
            CALLS[1] | {"tool_calls": [call(KOELN), call('{"city": "Ulm", "x": [1]}')]},
            CALLS[2], CALLS[2], CALLS[3], said("user", "Sure?"), said("assistant", "Sure."),
        ],
        "tools": json.dumps(TOOLS),
    },
    "parts": {
        "messages": [
            said("user", [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]),
            said("assistant", [{"type": "text", "text": "c d"}]),
        ]
    },
    "conversational": {"prompt": CALLS[:3], "completion": CALLS[3:], "tools": TOOLS},
    "pair": {"prompt": "Rain in Köln?", "completion": "No 12."},
}  # fmt: skip


def spans_of(tokenizer, messages, given=0):
    document = Document("here", "x", messages=tuple(messages), given=given)
    return next(render_with_spans(tokenizer, [document]))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("arguments", ["text", "object"])
def test_tokens_and_trained_ones_are_those_of_transformers(
    tmp_path, make_small, template, record, arguments
):
    """The template marks what is generated for transformers; ours is found without the marks."""
    raw = RECORDS[record]
    if arguments == "object":
        raw = json.loads(json.dumps(RECORDS[record]), object_hook=_with_object)
    source = TEMPLATES[template]
    plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    ours = make_small("smollm", chat_template=plain)
    document = as_chat(document_from_record(raw, where="here", label="x"))
    tokens = tokenize_documents([document], ours)
    # Transformers leaves out what is null, so that there a template cannot ask for it.
    marked = source.replace("m.content is none", "m.content is not defined")
    save_tokenizer(make_small("smollm", chat_template=marked), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = json.loads(json.dumps(document.messages), object_hook=FORMS[template])
    out = theirs.apply_chat_template(
        given,
        tools=list(document.tools) if document.tools else None,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert tokens.tokens.tolist() == out["input_ids"]
    mask = out["assistant_masks"]
    if document.given:  # transformers has no turns that are given
        rest = theirs.apply_chat_template(
            given[: document.given], tools=list(document.tools) if document.tools else None,
            add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        prompt = len(ours.backend.encode(rest, add_special_tokens=False).ids)
        mask = [0] * prompt + mask[prompt:]
    assert tokens.trained.tolist() == mask
    assert 0 < sum(mask) < len(mask)


def _with_object(fields):
    """A call's arguments as an object, as transformers recommends."""
    if isinstance(fields.get("arguments"), str):
        return fields | {"arguments": json.loads(fields["arguments"])}
    return fields


def _with_text(fields):
    if isinstance(fields.get("arguments"), dict):
        return fields | {"arguments": json.dumps(fields["arguments"], ensure_ascii=False)}
    return fields


# The form in which a template wants arguments from transformers; ours serves either from either.
FORMS = {"default system": _with_object, "rewriting": _with_object, "joined": _with_text}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}",
        "{% for m in messages %}{{ m.content + eos_token }}"
        "{% if m.tool_calls %}{{ raise_exception('No calls') }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_without_calls_is_refused_and_trains_no_silence(make_small, template):
    tokenizer = make_small("smollm", chat_template=template)
    with pytest.raises(UserError, match=r"the calls of tools.* use a model"):
        spans_of(tokenizer, CALLS)
    assert spans_of(tokenizer, CALLS[:1] + CALLS[3:]).assistant_spans
    broken = tokenizer._replace(chat_template=template + "{{ raise_exception('Never') }}")
    with pytest.raises(UserError, match="Never"):
        spans_of(broken, CALLS)


def test_turns_that_are_given_hold_no_span(make_small):
    tokenizer = make_small("smollm", chat_template=DEFAULT_SYSTEM)
    turns = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    spans = spans_of(tokenizer, turns, given=3)
    assert [spans.text[slice(*span)] for span in spans.assistant_spans] == ["d<|im_end|>"]
    with pytest.raises(UserError, match=r"no assistant turn among the roles \['user'\]"):
        spans_of(tokenizer, turns[:3], given=2)


def test_a_given_answer_alone_trains_nothing(make_small):
    """A template without marks of its own would give an empty mask silently."""
    silent = "{% for m in messages %}{{ m.content }}{% endfor %}"
    document = Document("file:3", "x", messages=(said("user", "a"), said("assistant", "")), given=1)
    with pytest.raises(UserError, match=r"file:3: .* no token would be trained"):
        tokenize_documents([document], make_small("smollm", chat_template=silent))


def test_rendering_does_not_change_the_messages(make_small):
    before = json.dumps(CALLS)
    tokenizer = make_small("smollm", chat_template=DEFAULT_SYSTEM)
    render_messages(tokenizer, CALLS, add_generation_prompt=True, where="here", tools=TOOLS)
    assert json.dumps(CALLS) == before
