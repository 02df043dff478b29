"""Tests that records of the real moving_shapes builder become examples."""

import os
import shutil
import socket

import pytest

from elva_jax.config import schema, validate
from elva_jax.data import sources
from elva_jax.data.conversation import choice_prompt
from elva_jax.data.readers import moving_shapes
from elva_jax.errors import DataError
from elva_jax.tools.datasets.moving_shapes.builder import build
from elva_jax.video.read import read_frames


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    build(folder, "hard", sizes={"image": 2, "train": 4}, workers=1)
    return folder


def test_real_records_become_examples(root):
    for split, kind in (("train", "video"), ("image", "image")):
        for record in sources.open_source("moving_shapes/hard", split, root):
            example = sources.to_example(record)
            notes = moving_shapes.annotation(record)
            (medium,) = example.media
            assert medium.kind == kind
            assert len(read_frames(medium.source, num_frames=4).pixels) == (
                4 if kind == "video" else 1
            )
            by_task = {
                task: [turn for turn in example.turns if turn.task == task]
                for task in ("object", "caption", "open", "choice")
            }
            for task in ("object", "caption"):
                assert [(t.question, t.answer) for t in by_task[task]] == [
                    (c["question"], c["answer"]) for c in notes["captions"][task]
                ]
            for question, opened, choice in zip(
                notes["questions"], by_task["open"], by_task["choice"], strict=True
            ):
                assert (opened.question, opened.answer, opened.family) == (
                    question["question"],
                    question["answer"],
                    question["family"],
                )
                assert choice.question == choice_prompt(question["question"], question["options"])
                assert choice.options["ABCD".index(choice.answer)] == opened.answer
                assert opened.about == choice.about != ""


@pytest.mark.parametrize("tasks", [("open",), ("object", "choice")])
def test_tasks_select_turns(root, tasks):
    record = sources.open_source("moving_shapes/hard", "train[:1]", root)[0]
    every = sources.to_example(record).turns
    assert (
        sources.to_example(record, tasks).turns
        == tuple(turn for turn in every if turn.task in tasks)
        != ()
    )


def test_malformed_records_are_named():
    record = {"id": b"clip9", "media": b"", "kind": b"video", "annotation": b'{"captions": {}}'}
    with pytest.raises(DataError, match=r"clip9: malformed annotation \(KeyError: 'questions'\)"):
        sources.to_example(record)


def test_every_file_suffix_of_the_config_has_a_reader():
    assert tuple(sources.FILE_READERS) == validate.FILES


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.json", "[ ]", r"notes\.json: has no records"),
        ("notes.CSV", "videoid,name\n", r"notes\.CSV: has no records"),
        ("notes.jsonl", "nothing", r"notes\.jsonl: neither a JSON array"),
        ("notes.tar", "nothing", r"notes\.tar: truncated, or not an uncompressed tar"),
        (
            "notes.parquet",
            "PAR1",
            r"notes\.parquet: no reader for this data set; there are moving_shapes, \.json",
        ),
    ],
)
def test_files_without_records_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        sources.open_examples(schema.source(str(tmp_path / name)), tmp_path)


def bind(path):
    """A socket, whose name may be longer than the system allows: bound below its folder."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


DAMAGES = {
    "pipe": (os.mkfifo, "is a named pipe"),
    "socket": (bind, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "folder": (os.mkdir, "record 0 cannot be read"),
    "empty": (os.truncate, "cannot be read|is damaged"),
    "cut": (os.truncate, "cannot be read|is damaged"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 400), "cannot be read|is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_shard_is_one_error(root, tmp_path, kind):
    """Neither a hang nor an error of ArrayRecord."""
    folder = shutil.copytree(root, tmp_path / "copy")
    (shard,) = folder.rglob("*-train.array_record*")
    damage, message = DAMAGES[kind]
    if damage is os.truncate:
        damage(shard, shard.stat().st_size // 4 if kind == "cut" else 0)
    else:
        shard.unlink()
        damage(shard)
    with pytest.raises(DataError, match=message):
        list(sources.open_source("moving_shapes/hard", "train", folder))
