"""What is removed and what stays, against the naive form of every reason."""

import re
from collections import Counter

import pytest

from distill_jax.data.cleaning import (
    STEPS,
    Cleaner,
    Cleaning,
    Removed,
    added,
    asked,
    judge_of,
    judged,
    packed,
    staying,
    text_of,
)
from distill_jax.data.contamination import COMMON, FEWEST_WORDS, WORDS
from distill_jax.data.documents import Document
from distill_jax.data.python_docs import read_python_docs


def _documents(*texts: str) -> list[Document]:
    return [Document(f"d{i}", "x", text=text) for i, text in enumerate(texts)]


def _cleaned(documents, held_out=(), **what):
    """What stays of documents, by name, and the counts."""
    judge = judge_of(Cleaning(**what), held_out, of_training="decontaminate" in what)
    stay, counts = bytearray(), {}
    names = [document.name for document in judged(documents, judge, stay, counts)]
    assert [d.name for d in staying(documents, packed(stay))] == names
    return names, counts


ASKED = {
    "length": {"min_characters": 3, "max_characters": 40},
    "filter": {"filter": lambda text, name: "z" not in text},
    "exact_duplicates": {"exact_duplicates": True},
    "near_duplicates": {"near_duplicates": 0.8},
    "decontaminate": {"decontaminate": True},
}


def test_every_step_is_tested():
    assert ASKED.keys() == STEPS.keys()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_removes_counts_and_names_and_is_off_by_default(name):
    long = " ".join(f"w{i}" for i in range(20))
    documents = _documents("abc z", "abc z", long, long, "z", "b z", "a")
    of_training = STEPS[name].of_training
    names, counts = _cleaned(documents, held_out=_documents(long, "other"), **ASKED[name])
    gone = [document for document in documents if document.name not in names]
    assert gone
    assert counts == {
        name: Removed(
            len(gone), sum(len(d.text) for d in gone), tuple(d.name for d in gone[:3])
        )
    }  # fmt: skip
    assert names == [document.name for document in documents if document not in gone or (
        document.name in names
    )]  # fmt: skip
    assert asked(Cleaning(**ASKED[name]), of_training=of_training) == (name,)
    assert not asked(Cleaning(**ASKED[name]), of_training=not of_training)
    assert not asked(Cleaning(), of_training=of_training)
    assert _cleaned(documents) == ([document.name for document in documents], {})


def test_documents_are_read_one_by_one_and_judged_once():
    read, judged_names, removed, stay = [], [], {}, bytearray()

    def source():
        for document in _documents("a", "z", "b", "z", "c"):
            read.append(document.name)
            yield document

    def keep(text, name):
        judged_names.append(name)
        return text != "z"

    judge = judge_of(Cleaning(filter=keep))
    first = judged(source(), judge, stay, removed)
    assert (read, removed) == ([], {})
    assert [next(first).name, next(first).name] == ["d0", "d2"]
    assert read == judged_names == ["d0", "d1", "d2"]
    assert removed == {"filter": Removed(1, 1, ("d1",))}
    assert [d.name for d in judged(source(), judge, stay, removed)] == ["d0", "d2", "d4"]
    assert judged_names == ["d0", "d1", "d2", "d3", "d4"]
    assert removed == {"filter": Removed(2, 2, ("d1", "d3"))}


@pytest.mark.parametrize("known", [0, 1, 2])
def test_several_sources_are_judged_as_one_also_where_the_first_were_judged_before(known):
    parts = _documents("a", "b", "a"), _documents("b", "c"), _documents("c", "d", "a")
    cleaner, counts, stays = Cleaner(Cleaning(exact_duplicates=True)), [], []
    for i, part in enumerate(parts):
        if i >= known:
            counts.append({})
            stays.append([d.text for d in cleaner.judged(part, bytearray(), counts[-1])])
        cleaner.passed(f"part {i}", lambda part=part: part)
    assert stays == [["a", "b"], ["c"], ["d"]][known:]
    assert cleaner.before == ["part 0", "part 1", "part 2"]
    total = [Removed(4, 4, ("d2", "d0", "d0")), Removed(3, 3, ("d0", "d0", "d2")),
             Removed(2, 2, ("d0", "d2"))][known]  # fmt: skip
    assert added(counts) == {"exact_duplicates": total}


@pytest.mark.parametrize("count", [0, 1, 8, 1001])
def test_what_stays_is_kept_as_text(count):
    stay = bytearray(i % 3 > 0 for i in range(count))
    found = list(staying(range(count + 9), packed(stay)))
    assert found == [i for i in range(count) if stay[i]]


def test_a_copy_of_what_was_removed_stays():
    """A document is compared with those that stay: judgements of one by itself come first."""
    documents = _documents("short", "long enough text", "long enough text", "short")
    names, counts = _cleaned(documents, min_characters=6, exact_duplicates=True)
    assert names == ["d1"]
    assert (counts["length"].documents, counts["exact_duplicates"].documents) == (2, 1)


def test_equal_is_equal_content_of_any_name_and_label_and_kind():
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    documents = [
        Document("0", "x", text="a\nb"),
        Document("1", "y", text="a\nb"),
        Document("2", "x", pair=("a", "b")),
        Document("3", "x", pair=("a", "b")),
        Document("4", "x", messages=turns),
        Document("5", "x", messages=turns, given=1),
        Document("6", "x", messages=turns),
    ]
    assert _cleaned(documents, exact_duplicates=True)[0] == ["0", "2", "4", "5"]


def test_of_turns_those_of_the_system_are_no_content():
    system = {"role": "system", "content": " ".join(f"rule{i}" for i in range(300))}
    ask = lambda word: (system, {"role": "user", "content": f"What is the word {word} ?"})
    documents = [Document(f"{i}", "x", messages=ask(word)) for i, word in enumerate("abcd")]
    assert text_of(documents[0]) == "What is the word a ?"
    assert _cleaned(documents, near_duplicates=0.5)[0] == list("0123")
    assert _cleaned(documents[:2], documents[2:], decontaminate=True)[0] == ["0", "1"]
    call = Document("c", "x", messages=({"role": "assistant", "content": None},))
    assert text_of(call) == ""


def test_texts_without_a_word_are_near_to_none():
    assert _cleaned(_documents("", "", " ", "\n"), near_duplicates=0.8)[0] == [
        "d0",
        "d1",
        "d2",
        "d3",
    ]


# Decontamination.


def _bare(document: Document) -> list[str]:
    return re.sub(r"[^\w\s]", "", text_of(document).lower()).split()


def _runs(words: list[str], n: int) -> set[str]:
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def _naive(training, held_out) -> list[str]:
    """Which documents stay, by sets of words."""
    known = [
        _runs(words, min(WORDS, len(words)))
        for document in dict.fromkeys(held_out)
        if len(words := _bare(document)) >= FEWEST_WORDS
    ]
    times = Counter(run for runs in known for run in runs)
    most = min(COMMON, max(1, len(set(held_out)) // 2))
    own = {run for run, count in times.items() if count <= most}
    lengths = range(FEWEST_WORDS, WORDS + 1)
    return [
        document.name
        for document in training
        if not any(own & _runs(_bare(document), n) for n in lengths)
    ]


def test_thirteen_words_are_found_as_by_sets():
    """On text with many common passages."""
    documents = list(read_python_docs())[:40]
    held_out, training = documents[::6], [d for i, d in enumerate(documents) if i % 6]
    # Planted: what one held-out text alone has, in other case and punctuation, over two turns, and
    # one word less of it.
    words = _bare(max(held_out, key=lambda document: len(document.text)))[100:113]
    planted = [
        Document("13", "x", text=f"before it, {' '.join(words).upper()}! And behind it."),
        Document("pair", "x", pair=(f"Say: {', '.join(words[:6])}", ", ".join(words[6:]))),
        Document("12", "x", text=f"before {' '.join(words[:12])} behind"),
    ]
    names, counts = _cleaned(training + planted, held_out, decontaminate=True)
    assert names == _naive(training + planted, held_out)
    gone = {document.name for document in training + planted} - set(names)
    assert {"13", "pair"} < gone
    assert "12" in names
    assert counts["decontaminate"].documents == len(gone) < len(training) // 2


@pytest.mark.parametrize(
    ("words", "gone"), [(FEWEST_WORDS - 1, False), (FEWEST_WORDS, True), (12, True), (13, True)]
)
def test_a_short_held_out_document_counts_as_a_whole(words, gone):
    text = " ".join(f"w{i}" for i in range(words))
    held_out = _documents(text, "nothing of the kind")
    names, _ = _cleaned(_documents(f"a {text} b", f"a {text}b"), held_out, decontaminate=True)
    assert names == (["d1"] if gone else ["d0", "d1"])


def test_what_many_held_out_documents_share_is_no_contamination():
    licence = " ".join(f"clause{i}" for i in range(20))
    own = [" ".join(f"w{i}_{j}" for j in range(20)) for i in range(30)]
    held_out = _documents(*(f"{licence} {text}" for text in own[:20]))
    names, _ = _cleaned(_documents(licence, own[0], own[29]), held_out, decontaminate=True)
    assert names == ["d0", "d2"]
    # Copies are one document: no text becomes common by them.
    held_out = _documents(*[own[0]] * 30, own[1], own[2])
    assert _cleaned(_documents(own[0], own[3]), held_out, decontaminate=True)[0] == ["d1"]


def test_without_held_out_text_nothing_is_removed():
    assert _cleaned(_documents("a b c", ""), decontaminate=True)[0] == ["d0", "d1"]
    assert _cleaned(_documents("a b c"), _documents("", "a b c"), decontaminate=True)[0] == ["d0"]
