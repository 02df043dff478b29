"""Tests of where media stand in a record, and which markers are text."""

import json

import pytest

from elva_jax.data import conversation
from elva_jax.data.readers.chat import to_example
from elva_jax.errors import DataError, RecordError
from elva_jax.video.layout import Clip

CLIP = Clip(((2, 3),))


def llava(media, *texts):
    speakers = ("human", "gpt") * len(texts)
    turns = zip(speakers, texts, strict=False)
    return {**media, "conversations": [{"from": who, "value": text} for who, text in turns]}


def parts(role, *contents):
    return {"role": role, "content": list(contents)}


def text(words):
    return {"type": "text", "text": words}


def video(**fields):
    return {"type": "video", "video": "a.mp4", **fields}


@pytest.fixture
def read():
    return lambda record: to_example(json.loads(json.dumps(record)), "x", str)


def html(question, later="Why?"):
    return llava({"video": "a.mp4"}, question, "Red.", later, "So.")


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (html("<video>\nIt misses a <video> tag."), ["", "It misses a <video> tag."]),
        (html("A <video> tag?\n <image> \t"), ["A <video> tag?", ""]),
        (html("<video>\nWho?", "Is <video> a tag?"), ["", "Who?"]),
        (html("<video>\nAfter \\<video>, <video>?"), ["", "After <video>, <video>?"]),
        (html("Is <video> here?"), ["Is", "here?"]),  # as it always was
        (html("<video>\r\n<image> or not?"), ["", "<image> or not?"]),
    ],
)
def test_markers_on_lines_of_their_own_are_the_places(read, tokenizer, record, texts):
    example = read(record)
    first, later = conversation.split_questions(example, 1)
    assert first == texts
    assert later == ["Is <video> a tag?" if "tag" in example.turns[1].question else "Why?"]
    assert conversation.render(example, tokenizer, [CLIP]).count(CLIP) == 1


@pytest.mark.parametrize("question", ["<video><video>\nWhich?", "<video>\n<video>\nA <video>?"])
def test_markers_that_fit_in_no_way_are_refused(read, tokenizer, question):
    example = read(html(question))
    with pytest.raises(DataError, match=r"markers for 1 media; write \\<video> where the word"):
        conversation.render(example, tokenizer, [CLIP])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"messages": [parts("user", text("What?")), parts("assistant", video())]},
            "has a medium in a turn of the assistant",
        ),
        (
            {"video": "b.mp4", "messages": [parts("user", video(), text("What?"))]},
            "names media in its own fields and others in its messages",
        ),
        (
            {"video": "a.mp4", "messages": [parts("user", video(end=-1), text("What?"))]},
            "the time -1 s is not within a video",
        ),
    ],
)
def test_media_of_parts_that_cannot_be(read, record, reason):
    with pytest.raises(RecordError, match=reason):
        read(record)


def test_bounds_of_a_part_hold_where_the_record_has_the_medium_too(read):
    user = parts("user", video(start=1, end=2), {"type": "image"}, text("What?"))
    record = {"images": ["1.jpg"], "videos": ["a.mp4"]}
    example = read(record | {"messages": [user, parts("assistant", text("It."))]})
    assert [(m.kind, m.start, m.end) for m in example.media] == [
        ("video", 1.0, 2.0),
        ("image", 0.0, None),
    ]
