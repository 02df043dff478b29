"""Tests of one's own questions, in all the forms that files in the field have."""

import json

import pytest
from tests.evaluation.benchmarks.helpers import grades, score, values, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.own import load_own
from elva_jax.evaluation.runner.tasks import read_questions


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def own(tmp_path, *records, media_dir=None):
    """The benchmark of some records, and its questions."""
    benchmark = load_own(write(tmp_path / "own.jsonl", lines(*records)), media_dir)
    return benchmark, list(benchmark.read(tmp_path))


def one(tmp_path, **record):
    _, (question,) = own(tmp_path, {"video": "a.mp4", "question": "What moves?", **record})
    return question


NAMES = ["red", "green", "blue"]
FORMS = {
    "options": {"options": NAMES},
    "candidates": {"candidates": ["(A) red", "(B) green", "(C) blue"]},
    "choices": {"choices": ["A. red", "B. green", "C. blue"]},
    "dict": {"options": {"A": "red", "B": "green", "C": "blue"}},
    "option_0": {f"option_{k}": name for k, name in enumerate(NAMES)},
    "option 0": {f"option {k}": name for k, name in enumerate(NAMES)},
    "option1": {f"option{k}": name for k, name in enumerate(NAMES, start=1)},
    "a0": {f"a{k}": name for k, name in enumerate(NAMES)},
    "choice_a": {f"choice_{letter}": name for letter, name in zip("abc", NAMES, strict=True)},
    "letters": dict(zip("ABC", NAMES, strict=True)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_options_have_many_forms(tmp_path, form):
    question = one(tmp_path, **form, answer="B")
    assert (question.options, question.answer) == (tuple(NAMES), 1)
    assert question.prompt.endswith("A. red\nB. green\nC. blue\nAnswer with the letter.")


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        *(({"answer": said}, 2) for said in ("C", "c", "(C)", "C.", "blue", "Blue.", "C. blue")),
        *(({"answer": said}, 2) for said in (2, "2")),
        ({"answer_index": 0}, 0),
        ({"correct_choice": "B"}, 1),
        ({}, None),
    ],
)
def test_answers_are_letters_indices_or_texts(tmp_path, answer, want):
    assert one(tmp_path, options=NAMES, **answer).answer == want


def test_counts_and_small_letters_are_texts_as_in_mvbench(tmp_path):
    assert one(tmp_path, candidates=["2", "3", "1"], answer="1").answer == 2
    assert one(tmp_path, candidates=["b", "c", "a"], answer="b").answer == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "has neither options nor a reference answer"),
        ({"options": NAMES, "answer": "D"}, "its answer D is neither the letter, the text nor"),
        ({"options": NAMES, "answer": "AA"}, "its answer AA is neither the letter"),
        ({"options": NAMES, "answer_index": 3}, "its answer has the index 3, and its 3 options"),
        ({"options": ["C", "A", "B"], "answer": "A"}, "may be A or B; give its index as answer_in"),
        ({"options": ["2", "3", "1"], "answer": 1}, "its answer 1 may be B or C"),
        ({"options": [str(k) * 3 for k in range(27)], "answer": "A"}, "has 27 options"),
        ({"options": {"A": "x", "C": "y"}, "answer": "A"}, "its options are named A, C, not A, B"),
        ({"options": {"AA": "x", "B": "y"}}, "its options are named AA, B"),
        ({"options": ["one"], "answer": "A"}, r"has 1 option\(s\)"),
        ({"answer": ["x", 1, True]}, "is True, no text"),
        ({"video": "../b.mp4", "answer": "x"}, "a media path leaves the root folder"),
        ({"video": "/etc/passwd", "answer": "x"}, "a media path leaves the root folder"),
        ({"answer": "x", "start": 3, "end": 1}, "its excerpt ends at 1 s, before it begins"),
        ({"answer": "x", "nframes": 0}, "its number of frames 0 is not"),
        ({"question": "", "answer": "x"}, "'question' is , no text"),
    ],
)
def test_a_record_that_cannot_be_asked_is_refused_with_its_line(tmp_path, record, message):
    good = {"video": "a.mp4", "question": "?", "answer": "x"}
    bad = {"video": "a.mp4", "question": "What?", **record}
    with pytest.raises(RecordError, match=rf"own.jsonl:2: .*{message}") as raised:
        own(tmp_path, good, bad)
    assert "\n" not in str(raised.value)


def test_a_question_without_a_medium_says_so(tmp_path):
    with pytest.raises(RecordError, match=r"own.jsonl:1: names no medium .*write \"video\": null"):
        own(tmp_path, {"vid": "a.mp4", "question": "?", "answer": "x"})
    assert one(tmp_path, video=None, answer="x").media == ()


def test_media_have_bounds_frames_and_a_folder_of_their_own(tmp_path):
    (tmp_path / "media").mkdir()
    record = {"video": "a.mp4", "question": "?", "answer": "x", "start": 1.5, "end": 4}
    _, (first, second) = own(
        tmp_path,
        {**record, "num_frames": 3},
        {"image_path": "i.png", "question": "?", "answer": "x"},
        media_dir=tmp_path / "media",
    )
    (clip,) = first.media
    assert (clip.start, clip.end, clip.frames) == (1.5, 4.0, 3)
    assert clip.source == str(tmp_path / "media" / "a.mp4")
    assert (second.media[0].source, second.media[0].kind) == (
        str(tmp_path / "media" / "i.png"),
        "image",
    )


def test_a_link_that_leads_out_is_a_problem_of_its_questions(tmp_path):
    (tmp_path / "outside.mp4").touch()
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.mp4").symlink_to("../outside.mp4")
    record = {"question": "?", "answer": "x"}
    media = tmp_path / "media"
    benchmark, (linked, missing) = own(
        tmp_path, record | {"video": "a.mp4"}, record | {"video": "b.mp4"}, media_dir=media
    )
    assert linked.problem == ""  # read from another folder than its own
    found = [read_questions(benchmark, tmp_path, follow_links=links) for links in (False, True)]
    assert [[bool(q.problem) for q in each] for each in found] == [[True, False], [False, False]]
    assert found[0][0].problem.startswith(f"{media / 'a.mp4'}: links lead out of {media}, to")
    assert missing.media == found[0][1].media


def talk(*texts):
    roles = ("human", "gpt") * len(texts)
    return [{"from": role, "value": text} for role, text in zip(roles, texts, strict=False)]


def test_conversations_are_asked_turn_by_turn_as_they_are(tmp_path):
    record = {
        "id": "7",
        "video": "a.mp4",
        "conversations": talk("<video>\nWhat moves?", "A dog.", "What color?", "Red."),
        "data_source": "x",
    }
    benchmark, questions = own(tmp_path, record)
    assert [(q.key, q.prompt, q.references) for q in questions] == [
        ("7#1", "What moves?", ("A dog.",)),
        ("7#2", "What color?", ("Red.",)),
    ]
    assert all(len(q.media) == 1 for q in questions)
    assert (benchmark.kind, benchmark.judge) == ("open", "qa")
    found = score(benchmark, questions, ["the dog", "Blue"])
    assert (found.main.name, found.main.value) == ("exact match", 50.0)


def test_options_in_the_text_of_a_conversation_make_a_choice(tmp_path):
    text = "<video>\nWhat moves?\nA. a dog\nB. a cat\nAnswer with the option's letter."
    records = [
        {"video": "a.mp4", "conversations": talk(text, said)} for said in ("B", "a cat", "B. a cat")
    ]
    _, questions = own(tmp_path, *records)
    for question in questions:
        assert (question.options, question.answer) == (("a dog", "a cat"), 1)
        assert question.prompt == text.removeprefix("<video>\n")
    record = {"video": "a.mp4", "conversations": talk(text, "Both."), "options": ["a dog", "a cat"]}
    with pytest.raises(RecordError, match=r"own.jsonl:1: its answer Both. is neither the letter"):
        own(tmp_path, record)
    _, (question,) = own(tmp_path, {"video": "a.mp4", "conversations": talk(text, "Both.")})
    assert (question.options, question.references) == ((), ("Both.",))


def test_messages_with_parts_are_read(tmp_path):
    content = [{"type": "video", "video": "a.mp4", "nframes": 2}, {"type": "text", "text": "Who?"}]
    system = {"role": "system", "content": "Be brief."}
    record = {"messages": [system, {"role": "user", "content": content}], "answer": "a man"}
    _, (question,) = own(tmp_path, record)
    assert (question.prompt, question.references) == ("Be brief.\n\nWho?", ("a man",))
    assert question.media[0].frames == 2


def test_options_and_references_may_be_mixed(tmp_path):
    records = [
        {"video": "a.mp4", "question": "?", "options": NAMES, "answer": "red", "category": "x"},
        {"video": "a.mp4", "question": "?", "references": ["a dog", "dog"], "category": "x"},
    ]
    benchmark, questions = own(tmp_path, *records)
    assert benchmark.kind == "choice"
    found = score(benchmark, questions, ["A", "The dog."])
    others = values({metric.name: metric for metric in found.others})
    assert (found.main.name, found.main.value, found.main.count) == ("accuracy", 100.0, 2)
    assert others == {"choice accuracy": 100.0, "exact match": 100.0, "token F1": 100.0}
    assert [g.status for g in grades(benchmark, questions, ["", ""])] == ["unparsed", "unparsed"]


def test_repeated_ids_are_kept_apart_and_arrays_are_read(tmp_path):
    record = {"id": 1, "video": "a.mp4", "question": "?", "answer": "x"}
    benchmark = load_own(write(tmp_path / "my set.json", [record, record]))
    assert [q.key for q in benchmark.read(tmp_path)] == ["1", "1 (my set.json[1])"]
    assert (benchmark.name, benchmark.title) == ("own_my_set", "my set.json")
    with pytest.raises(DataError, match=r"empty.json: has no questions"):
        load_own(write(tmp_path / "empty.json", []))
    with pytest.raises(DataError, match=r"gone.json: cannot be opened"):
        load_own(tmp_path / "gone.json")
