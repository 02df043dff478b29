"""Tests of LLaVA, ShareGPT and VideoChat files in the formats of public ones."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from elva_jax.data import conversation
from elva_jax.data.decode_example import ConversationDecoder
from elva_jax.data.example import Media, Turn
from elva_jax.data.mixture import Mixture
from elva_jax.data.readers import chat
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.errors import DataError, RecordError
from elva_jax.video.read import read_frames


def llava(media, *texts, **more):
    """A record in LLaVA's format with alternating turns of human and gpt."""
    speakers = ("human", "gpt") * len(texts)
    return {
        **media,
        "conversations": [
            {"from": who, "value": text} for who, text in zip(speakers, texts, strict=False)
        ],
        **more,
    }


def sharegpt(media, *texts):
    """A record in LLaMA-Factory's format."""
    roles = ("user", "assistant") * len(texts)
    return {
        "messages": [
            {"content": text, "role": role} for role, text in zip(roles, texts, strict=False)
        ],
        **media,
    }


def parts(role, *contents):
    """A message whose content is a list of parts, as in OpenAI's format."""
    return {"role": role, "content": list(contents)}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture
def read(tmp_path):
    """`read(*records)` writes records to a JSON array and returns their examples."""

    def read(*records):
        path = tmp_path / "notes.json"
        path.write_text(json.dumps(records, indent=2))
        return list(JsonFile(path))

    return read


def media_of(example, root):
    return [
        (os.path.relpath(medium.source, root.resolve()), medium.kind) for medium in example.media
    ]


@pytest.mark.parametrize(
    ("record", "media", "turns"),
    [
        (
            llava({"id": 0, "video": "a.mkv"}, "<video>\nBriefly?", "A man."),
            [("a.mkv", "video")],
            [("<video>\nBriefly?", "A man.")],
        ),
        (
            llava({"image": "d/1.png"}, "In which year?\n<image>", "2014"),
            [("d/1.png", "image")],
            [("In which year?\n<image>", "2014")],
        ),
        (
            llava({"video": "a.mp4"}, "<image>\nWhat?", "That.", data_source="0_30_s"),
            [("a.mp4", "video")],
            [("<image>\nWhat?", "That.")],
        ),
        (
            llava({"image": ["1.jpg", "2.jpg"]}, "<image><image>\nSame?", "No.", "Why?", "Look."),
            [("1.jpg", "image"), ("2.jpg", "image")],
            [("<image><image>\nSame?", "No."), ("Why?", "Look.")],
        ),
        (
            sharegpt(
                {"images": ["1.jpg", "1.jpg"]}, "<image>Who?", "They.", "What?<image>", "Football."
            ),
            [("1.jpg", "image"), ("1.jpg", "image")],
            [("<image>Who?", "They."), ("What?<image>", "Football.")],
        ),
        (
            sharegpt({"images": ["1.jpg"], "videos": ["2.avi"]}, "<video>And <image>?", "Yes."),
            [("2.avi", "video"), ("1.jpg", "image")],
            [("<video>And <image>?", "Yes.")],
        ),
        (
            {"image": "2.jpg", "QA": [{"q": "Write.", "a": "A man."}]},
            [("2.jpg", "image")],
            [("Write.", "A man.")],
        ),
        (
            {"video": "2.mp4", "QA": [{"i": "Be brief.", "q": "What?", "a": "It."}]},
            [("2.mp4", "video")],
            [("Be brief.\nWhat?", "It.")],
        ),
        (llava({}, "Hello", "Hi."), [], [("Hello", "Hi.")]),
        (
            {"images": ["1.jpg"], "texts": [{"user": "What?", "assistant": "It.", "source": "x"}]},
            [("1.jpg", "image")],
            [("What?", "It.")],
        ),
        (
            {
                "messages": [
                    parts("user", text("Is it"), {"type": "video", "video": "2.mp4"}, text("now?")),
                    parts("assistant", text("Yes.")),
                ]
            },
            [("2.mp4", "video")],
            [("Is it\n<video>\nnow?", "Yes.")],
        ),
        (
            {
                "messages": [
                    parts(
                        "user", {"type": "image_url", "image_url": {"url": "1.jpg"}}, text("Who?")
                    ),
                    parts("assistant", text("I.")),
                ]
            },
            [("1.jpg", "image")],
            [("<image>\nWho?", "I.")],
        ),
    ],
)
def test_records_of_every_format_are_read(read, tmp_path, record, media, turns):
    (example,) = read(record)
    assert media_of(example, tmp_path) == media
    assert example.turns == tuple(Turn(*turn) for turn in turns)
    assert example.ordered
    assert example.key == "notes.json[0]"


def test_system_turn_replaces_that_of_the_stage(read, config, tokenizer):
    spoken = {
        "messages": [
            {"role": role, "content": f"The {role}."} for role in ("system", "user", "assistant")
        ]
    }
    decoder = ConversationDecoder(Mixture(config, "video"), config, config.stages.video, tokenizer)
    for example, system in zip(
        read(spoken, llava({}, "The user.", "The assistant.")),
        ("The system.", "Be brief."),
        strict=True,
    ):
        layout = decoder.prepare(example, np.random.default_rng(0)).layout
        messages = [("system", system), ("user", "The user."), ("assistant", "The assistant.")]
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False
        )
        assert tokenizer.decode(layout.token_id) == text


def test_answer_before_the_first_question_is_skipped(read):
    record = llava({}, "Ask me.", "What?", "That.")
    for message, who in zip(record["conversations"], ("gpt", "human", "gpt"), strict=True):
        message["from"] = who
    assert read(record)[0].turns == (Turn("What?", "That."),)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "is not a JSON object"),
        ({"video": "a.mp4"}, "has neither 'conversations' nor 'messages'"),
        ({"conversations": "hello"}, "'conversations' is not a list"),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "an entry of 'conversations' is not 'from' and 'value' in text",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the role 'tool' is not one of"),
        ({"QA": [{"q": 3}]}, "an entry of 'QA'"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
            "a question has no answer",
        ),
        (
            {
                "messages": [
                    {"role": role, "content": "x"} for role in ("user", "assistant", "assistant")
                ]
            },
            "do not alternate",
        ),
        (llava({"video": [["a.mp4"]]}, "What?", "That."), "must be image files of a video"),
        (llava({"video": [[7]]}, "What?", "That."), "empty or not text"),
        (llava({"video": "a\0.mp4"}, "What?", "That."), "cannot be resolved"),
        (llava({"video": "a" * 300 + ".mp4"}, "What?", "That."), "cannot be resolved"),
        (llava({}, "\ud800", "That."), "not valid Unicode"),
    ],
)
def test_malformed_records_are_named(read, record, reason):
    with pytest.raises(RecordError, match=rf"^notes\.json\[0\]: .*{reason}"):
        read(record)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [((), "is empty"), (("What?",), "no answer"), (("What?", " "), "no answer")],
)
def test_records_without_answers_are_refused_before_training(read, texts, reason):
    (example,) = read(llava({}, *texts))
    with pytest.raises(DataError, match=rf"^notes\.json\[0\]: .*{reason}"):
        conversation.check(example)


def test_a_snapshot_of_the_hub_s_cache_may_link_to_its_blobs(tmp_path, picture):
    repository = tmp_path / "datasets--me--pets"
    root = repository / "snapshots" / "0123"
    for folder in (root, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
        (folder / "4567").write_bytes(picture)
    for number, target in enumerate(("../../blobs/4567", "../../refs/4567")):
        (root / f"{number}.png").symlink_to(target)
    path = tmp_path / "notes.jsonl"
    names = ("0.png", "1.png", "../../blobs/4567")
    path.write_text("\n".join(json.dumps(llava({"image": name}, "What?", "A.")) for name in names))
    examples = JsonFile(path, str(root))
    assert examples[0].media[0].source == str(repository / "blobs" / "4567")
    for number in (1, 2):
        with pytest.raises(RecordError, match="leaves the root folder"):
            examples[number]


def test_paths_that_leave_the_root_are_refused(tmp_path, picture):
    root, outside = tmp_path / "root", tmp_path / "root_beside"
    for folder in (root / "in", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(picture)
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "frames").mkdir()
    (root / "frames" / "0.png").symlink_to(root / "in" / "a.png")
    (root / "mixed").mkdir()
    (root / "mixed" / "0.png").symlink_to(outside / "a.png")
    (root / "fine.png").symlink_to(root / "in" / "a.png")
    good = ["in/a.png", "./in/../in/a.png", "fine.png", "frames", str(root / "in" / "a.png")]
    bad = [
        "../root_beside/a.png",
        "in/../../root_beside/a.png",
        str(outside / "a.png"),
        "/etc/passwd",
        "link.png",
        "folder/a.png",
        "mixed",
        "..",
    ]
    path = tmp_path / "notes.jsonl"
    path.write_text(
        "\n".join(json.dumps(llava({"image": name}, "What?", "That.")) for name in (*good, *bad))
    )
    examples = JsonFile(path, str(root))
    for k in range(len(good)):
        assert len(read_frames(examples[k].media[0].source, num_frames=1).pixels) == 1
    for k in range(len(good), len(examples)):
        with pytest.raises(
            RecordError, match=rf"^notes\.jsonl:{k + 1}: a media path leaves the root folder$"
        ):
            examples[k]


@pytest.fixture
def picture():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


def test_folder_of_frames_is_a_video(read, tmp_path, picture):
    (tmp_path / "clip").mkdir()
    for k in range(3):
        (tmp_path / "clip" / f"{k}.png").write_bytes(picture)
    (medium,) = read(llava({"video": "clip"}, "<video>What?", "Red."))[0].media
    assert medium == Media(str((tmp_path / "clip").resolve()), "video")
    assert len(read_frames(medium.source, num_frames=8).pixels) == 3


def test_each_line_is_a_record(tmp_path):
    good = json.dumps(llava({"id": "é"}, "¿Qué?", "日本"), ensure_ascii=False).encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        b"",
        b'{"conversations": [',
        good.replace("é".encode(), b"\xe9"),
        b"[" * 100_000,
        good + b"\r",
        b"  ",
    ]
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"\n".join(lines))
    examples = JsonFile(path)
    assert len(examples) == 5
    for k in (0, 4):
        assert examples[k].turns == (Turn("¿Qué?", "日本"),)
    for k, problem in (
        (1, r"3: is not JSON \(Expecting value\)"),
        (2, "4: is not UTF-8 text"),
        (3, r"5: is not JSON \(nested deeper than 200 levels\)"),
    ):
        with pytest.raises(RecordError, match=rf"^notes\.jsonl:{problem}"):
            examples[k]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8")).map(lambda text: "x" + text), min_size=1, max_size=6
    ),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
)
def test_arrays_and_lines_are_read_as_by_json(tmp_path, texts, ascii_only, indent):
    records = [llava({}, text, text[::-1] + "y") for text in texts]
    (tmp_path / "a.json").write_text(
        json.dumps(records, ensure_ascii=ascii_only, indent=indent), encoding="utf-8"
    )
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("a.json", "a.jsonl"):
        assert [example.turns for example in JsonFile(tmp_path / name)] == [
            (Turn(text, text[::-1] + "y"),) for text in texts
        ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*"qa", "from", "value", "role", "content", "type"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["conversations", "messages", "QA", "texts", "video", "images", "system"]),
        JSON_VALUES,
    )
)
def test_any_json_gives_an_example_or_an_error_with_the_record(record):
    with contextlib.suppress(RecordError):
        example = chat.to_example(record, "key", str)
        assert all(
            isinstance(text, str) for turn in example.turns for text in (turn.question, turn.answer)
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a" 2}]', r"line 3: broken JSON in record 1 \(Expecting ':' delimiter\)"),
        ('[\n{"a": 1},\n{"a": 2}', r"line 3: broken JSON after record 1"),
        ('[\n{"a": 1}\n{"a": 2}]', r"line 3: broken JSON after record 0"),
        ('[{"a": 1}] [', r"line 1: broken JSON after record 0"),
        ('[{"a": 1}, ]', r"line 1: broken JSON in record 1"),
        ("[" * 100_000, r"line 1: broken JSON in record 0 \(RecursionError\)"),
        ('{\n"a": 1\n}', r"none of the first 20 lines is a JSON record"),
        ("videoid,name\n", "neither a JSON array of records nor one JSON record per line"),
        ("", "neither a JSON array"),
        ('[{"a": 1}]'.encode("utf-16"), "is not UTF-8 text, perhaps UTF-16; save it as UTF-8"),
        ('{"a": 1}'.encode("utf-32-le"), "is not UTF-8 text"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path, text, message):
    path = tmp_path / "notes.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"notes\.json: {message}"):
        JsonFile(path)


def test_missing_file_or_root_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be opened \(No such file"):
        JsonFile(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"nowhere: no such folder; set root"):
        JsonFile(tmp_path / "none.json", str(tmp_path / "nowhere"))
