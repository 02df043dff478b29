"""What the rows of a file of questions mean, and those that cannot be asked."""

import base64
import json
import tracemalloc

import pytest

from elva_jax.data.example import Media
from elva_jax.errors import DataError, RequestError
from elva_jax.inference.batch_file.index import QuestionFile
from elva_jax.inference.batch_file.rows import Label, label_of, read_row
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.sampling import Sampling

DEFAULT = Writing(max_new_tokens=9, sampling=Sampling(repetition_penalty=1.5))
DATA = "data:video/mp4;base64," + base64.b64encode(b"film").decode()


@pytest.fixture
def read(tmp_path):
    return lambda value: read_row(value, "q.jsonl:1", tmp_path.resolve(), DEFAULT)


def openai(*parts, **more):
    body = {"messages": [{"role": "user", "content": list(parts) or "Hi"}], **more}
    return {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}


def text(said):
    return {"type": "text", "text": said}


def url(name, kind="video_url", **more):
    return {"type": kind, kind: {"url": name}, **more}


@pytest.mark.parametrize(
    "value",
    [
        {"video": "a.mp4", "prompt": "What?"},
        {"media": "a.mp4", "question": "What?", "start": None},
        {"video_path": ["a.mp4"], "text": " What? "},
        {"video": "a.mp4", "conversations": [{"from": "human", "value": "What?"}]},
        {"video": "a.mp4", "prompt": "<video>\nWhat?"},
        openai(url("a.mp4"), text("What?")),
        openai({"type": "video", "video": "a.mp4"}, "What?", temperature=None),
        {"messages": [{"role": "user", "content": [url("a.mp4"), text("What?")]}]},
    ],
)  # fmt: skip
def test_one_question_in_many_forms(read, tmp_path, value):
    row = read(value)
    ((question, answer),) = row.dialogue.turns
    assert question.removeprefix("<video>\n") == "What?"
    assert (answer, row.writing) == ("", DEFAULT)
    assert row.dialogue.media == (Media(str(tmp_path.resolve() / "a.mp4"), "video"),)


def test_earlier_turns_system_options_excerpts_and_settings(read, tmp_path):
    said = [("human", "<image>\nWhat?"), ("gpt", "A dog."), ("human", "Where?"), ("gpt", "There.")]
    turns = [{"from": who, "value": text} for who, text in said]
    value = {"id": 3, "image": "b.jpg", "system": "Be brief.", "conversations": turns, "seed": 4}
    row = read(value)
    assert row.dialogue.turns == (("<image>\nWhat?", "A dog."), ("Where?", "There."))
    assert row.dialogue.system == "Be brief."
    assert row.writing.sampling == Sampling(repetition_penalty=1.5, seed=4)
    assert label_of(value) == Label(form="record", id=3, reference="There.")
    listed = read({"video": None, "prompt": "Which?", "options": ["red", "blue"]})
    assert "A. red\nB. blue" in listed.dialogue.turns[0][0]
    parts = (url("a.mp4", start=1, end=2, nframes=3), url(DATA), url("c.png", "image_url"), "What?")
    row = read(
        openai(*parts, frames=5, max_completion_tokens=7, stop=["x", ""], top_p=0.5, user="u")
    )
    root = tmp_path.resolve()
    assert row.dialogue.media == (
        Media(str(root / "a.mp4"), "video", start=1.0, end=2.0, frames=3),
        Media(b"film", "video", frames=5),
        Media(str(root / "c.png"), "image"),
    )
    assert row.dialogue.turns == (("<video>\n<video>\n<video>\nWhat?", ""),)
    stopped = Sampling(top_p=0.5, repetition_penalty=1.5, stop=("x",))
    assert row.writing == Writing(max_new_tokens=7, sampling=stopped)
    assert row.ignored == ("user",)


def test_markers_in_text_are_text_where_they_place_nothing(read):
    row = read(openai(url("a.mp4"), "Is <image> a word?"))
    assert row.dialogue.turns == (("<video>\nIs \\<image> a word?", ""),)
    row = read({"video": "a.mp4", "prompt": "Is <image> or <video> meant?"})
    assert row.dialogue.turns == (("<video>\nIs \\<image> or \\<video> meant?", ""),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "q.jsonl:1: is 3, no JSON object"),
        ({"prompt": "What?"}, "names no medium"),
        ({"video": "a.mp4"}, "asks nothing"),
        ({"video": "a.mp4", "prompt": " "}, "asks nothing"),
        ({"video": None, "prompt": "\ud800"}, "not valid Unicode"),
        ({"video": "/etc/passwd", "prompt": "What?"}, "leaves the root folder"),
        ({"video": "http://10.0.0.1/a.mp4", "prompt": "What?"}, "by the URL http://10.0.0.1/a.mp4"),
        ({"video": "file://host/a.mp4", "prompt": "What?"}, "is on another host"),
        ({"video": "file://[x/a.mp4", "prompt": "What?"}, "//[x/a.mp4 is on another host"),
        ({"media": 3, "prompt": "What?"}, "'media' has 3, no path"),
        ({"video": "data:video/mp4;base64,?", "prompt": "What?"}, "is not base64"),
        ({"video": "data:text/html,x", "prompt": "What?"}, "is not like data:video/mp4;base64"),
        ({"video": None, "prompt": "What?", "options": {"A": "x"}}, "no list of texts"),
        ({"video": None, "prompt": "What?", "max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"video": None, "prompt": "What?", "temperature": True}, "temperature: must be a number"),
        ({"video": None, "prompt": "What?", "stop": 3}, "stop: must be at most 16 texts"),
        ({"image": "a", "conversations": []}, "the conversation is empty"),
        ({**openai(), "custom_id": 3}, "custom_id: is 3, no text"),
        ({**openai(), "custom_id": "x" * 1001}, "custom_id: has more than 1000 characters"),
        ({**openai(), "method": "GET"}, "only POST"),
        ({**openai(), "url": "/v1/embeddings"}, "only /v1/chat/completions"),
        ({**openai(), "body": []}, "body: is [], no JSON object"),
        (openai(n=2), "n: 2 is not supported"),
        (openai(tools=[{}]), "tools: "),
        (openai(stream=True), "stream: a file of answers is not streamed"),
        (openai(seed=1.5), "seed: must be a whole number"),
        (openai(frames=0), "frames: must be at least 1"),
        (openai(messages=[]), "messages: must be a list"),
        (openai(messages=[3]), "messages: has an entry that is no object"),
        (openai(messages=[{"role": "tool", "content": "x"}]), "message of the role 'tool'"),
        (openai(messages=[{"role": "assistant", "content": "x"}]), "cannot stand where it stands"),
        (openai({"type": "input_audio"}), "messages: a message has a part of type input_audio"),
        (openai({"type": "video_url", "video_url": {}}), "names no video"),
        (openai(url("a.mp4", fps=2), "x"), "messages: asks for fps = 2"),
        (openai(url("../a.mp4"), "x"), "messages: a media path leaves the root folder"),
        (openai(messages=[{"role": "user", "content": 3}]), "neither text nor parts"),
        (openai({"type": ["x"]}), "a part of type ['x']"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_say_why(read, value, message):
    with pytest.raises(DataError) as error:
        read(value)
    assert message in str(error.value)
    if "custom_id" in (value if isinstance(value, dict) else ()):
        assert isinstance(error.value, RequestError)
    label_of(value)


def test_what_is_too_long_is_not_repeated():
    long = "x" * 2**20
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": long}]
    assert label_of({"id": [long], "conversations": turns}) == Label(form="record")
    assert label_of({"custom_id": long, "body": {"model": long}}, "m") == Label(
        form="openai", model="m"
    )


def test_media_within_rows_are_not_held_and_equal_ones_are_one(tmp_path):
    films = [bytes([k % 5]) * 200_000 for k in range(20)]
    with (tmp_path / "q.jsonl").open("w") as file:
        for film in films:
            data = "data:video/mp4;base64," + base64.b64encode(film).decode()
            file.write(json.dumps({"video": data, "prompt": "What?"}) + "\n")
    tracemalloc.start()
    found = QuestionFile(tmp_path / "q.jsonl", None, DEFAULT)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1e5
    assert peak < 2e6
    assert len({medium for (medium,) in found.media}) == 5
    assert [found.source(medium).source for (medium,) in found.media[:6]] == films[:6]


def test_a_wrong_folder_is_refused_before_anything_is_asked(tmp_path):
    rows = [{"video": f"{k}.mp4", "prompt": "What?"} for k in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"none of its 4 media exists.*set --media-dir"):
        QuestionFile(tmp_path / "q.jsonl", None, DEFAULT)
