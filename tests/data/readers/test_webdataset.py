"""Tests of tar shards in WebDataset's layout."""

import io
import json
import pickle
import tarfile

import pytest

from elva_jax.data.example import Media, Turn
from elva_jax.data.readers import webdataset
from elva_jax.data.readers.records import QUESTIONS
from elva_jax.data.readers.webdataset import WebDataset
from elva_jax.errors import DataError, RecordError

CHAT = {
    "video": "ignored.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat?"},
        {"from": "gpt", "value": "A dog."},
    ],
}


def write(path, *members, form=tarfile.PAX_FORMAT):
    """Writes a tar with members given as (name, bytes), (name, text) or (TarInfo, b"")."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_the_same_name_are_a_record(tmp_path, form):
    long = "deep/" * (20 if form == tarfile.USTAR_FORMAT else 60)
    folder = tarfile.TarInfo("deep")
    folder.type = tarfile.DIRTYPE
    path = write(
        tmp_path / "a.tar",
        (folder, b""),
        ("README", "no record"),
        ("./000.mp4", b"m" * 700),
        ("./000.json", json.dumps(CHAT)),
        (f"{long}001.txt", "Ein Café."),
        (f"{long}001.jpg", b"j"),
        ("002.0.PNG", b"p0"),
        ("002.1.png", b"p1"),
        ("002.cls", "7"),
        ("002.json", json.dumps({"caption": "Two."})),
        ("b/002.webm", b"w"),
        ("b/002.txt", "Another folder's."),
        form=form,
    )
    records = pickle.loads(pickle.dumps(WebDataset(path)))
    examples = [records[k] for k in (3, 1, 0, 2)]
    assert len(records) == 4
    assert [example.media for example in examples] == [
        (Media(b"w", "video"),),
        (Media(b"j", "image"),),
        (Media(b"m" * 700, "video"),),
        (Media(b"p0", "image"), Media(b"p1", "image")),
    ]
    assert [example.turns for example in examples] == [
        (Turn(QUESTIONS["video"], "Another folder's.", task="caption"),),
        (Turn(QUESTIONS["image"], "Ein Café.", task="caption"),),
        (Turn("<video>\nWhat?", "A dog."),),
        (Turn(QUESTIONS["image"], "Two.", task="caption"),),
    ]
    assert [example.key for example in examples] == [
        "a.tar/b/002",
        f"a.tar/{long}001",
        "a.tar/./000",
        "a.tar/002",
    ]


@pytest.mark.parametrize("pattern", ["part-{08..10}.tar", "part-*.tar"])
def test_shards_are_read_in_order(tmp_path, pattern):
    for n in range(8, 11):
        write(
            tmp_path / f"part-{n:02d}.tar",
            ("x.mp4", b"m"),
            ("x.txt", f"Of {n}."),
            ("y.mp4", b"m"),
            ("y.txt", f"Also {n}."),
        )
    captions = [example.turns[0].answer for example in WebDataset(tmp_path / pattern)]
    assert captions == ["Of 8.", "Also 8.", "Of 9.", "Also 9.", "Of 10.", "Also 10."]


def linked(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("../../x.mp4", b"m")], "a member's name leaves the shard"),
        ([("a/../../x.mp4", b"m")], "a member's name leaves the shard"),
        ([("/etc/x.mp4", b"m")], "a member's name leaves the shard"),
        ([("a\\..\\x/x.mp4", b"m")], "a member's name leaves the shard"),
        ([(linked("x.mp4", tarfile.SYMTYPE), b"")], "a member is a link or a device"),
        ([(linked("x.mp4", tarfile.LNKTYPE), b"")], "a member is a link or a device"),
        ([(linked("x.mp4", tarfile.FIFOTYPE), b"")], "a member is a link or a device"),
        ([("x.txt", "No clip.")], "has neither a video nor an image"),
        ([("x.mp4", b"m"), ("x.txt", b"\xff")], "is not UTF-8 text"),
        ([("x.mp4", b"m"), ("x.json", b"{")], "is not JSON"),
        ([("x.mp4", b"m"), ("x.json", b"[]")], "is not a JSON object"),
    ],
)
def test_malformed_records_are_named_and_nothing_is_written(tmp_path, members, reason):
    path = write(
        tmp_path / "a.tar",
        ("before.mp4", b"1"),
        ("before.txt", "One."),
        *members,
        ("z.mp4", b"2"),
        ("z.txt", "Two."),
    )
    records = WebDataset(path)
    assert [records[k].turns[0].answer for k in (0, 2)] == ["One.", "Two."]
    with pytest.raises(RecordError, match=rf"^a\.tar/.*x: {reason}"):
        records[1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [100, 700, 1024 + 100, 1024 + 512 + 4])
def test_truncated_shard_is_refused_with_the_offset(tmp_path, length):
    # Headers at 0 and 1024.
    path = write(
        tmp_path / "a.tar", ("x.txt", "One."), ("y.mp4", b"m" * 600), form=tarfile.USTAR_FORMAT
    )
    path.write_bytes(path.read_bytes()[:length])
    where = 1024 if length > 1024 else 0
    with pytest.raises(DataError, match=rf"a\.tar: truncated(,| or) .*, at byte {where} "):
        WebDataset(path)


def test_broken_header_is_not_taken_for_the_end(tmp_path):
    path = write(
        tmp_path / "a.tar", ("x.txt", "One."), ("y.mp4", b"m" * 600), form=tarfile.USTAR_FORMAT
    )
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # inside the checksum of the second header
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: truncated or broken, at byte 1024"):
        WebDataset(path)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 10 + b"\xfc\x00", b"\x80" + b"\x7f" * 11])
@pytest.mark.timeout(20)
def test_absurd_sizes_are_refused(tmp_path, size):
    """Negative sizes, some of which would cause an endless loop, and a size that no file has."""
    path = write(
        tmp_path / "a.tar", ("x.txt", "One."), ("y.mp4", b"m" * 600), form=tarfile.USTAR_FORMAT
    )
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"a\.tar: truncated, or not an uncompressed tar, at byte \d+ "
    ):
        WebDataset(path)


def test_files_that_are_not_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.txt"))
    (tmp_path / "empty.tar").touch()
    for name in ("packed", "empty"):
        with pytest.raises(
            DataError, match=rf"{name}\.tar: truncated, or not an uncompressed tar, at byte 0"
        ):
            WebDataset(tmp_path / f"{name}.tar")
    for name in ("none.tar", "none-*.tar", "none-{0..1}.tar"):
        with pytest.raises(DataError, match=r"none.*: no such shard"):
            WebDataset(tmp_path / name)


@pytest.mark.parametrize(
    "names",
    [
        ("cam1.2024-05-01.json", "cam1.2024-05-02.json"),
        ("a.left.txt", "a.right.TXT"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_two_members_for_one_place_are_refused(tmp_path, names):
    path = write(tmp_path / "a.tar", ("a.jpg", b"j"), *((name, "{}") for name in names))
    records = WebDataset(path)
    with pytest.raises(RecordError, match=r"two members for .*rename"):
        records[len(records) - 1]


def test_a_key_twice_in_a_json_member_is_refused(tmp_path):
    text = '{"caption": "One.", "caption": "Two."}'
    path = write(tmp_path / "a.tar", ("a.jpg", b"j"), ("a.json", text))
    with pytest.raises(RecordError, match="'caption' occurs twice"):
        WebDataset(path)[0]


@pytest.mark.parametrize(
    ("limit", "name"), [("LARGEST_MEDIUM", "b.mp4"), ("LARGEST_TEXT", "b.txt")]
)
def test_a_member_above_the_limit_is_not_read(tmp_path, monkeypatch, limit, name):
    path = write(
        tmp_path / "a.tar",
        *(("a.mp4", b"1"), ("a.txt", "One."), ("b.mp4", b"2"), ("b.txt", "Two.")),
    )
    with tarfile.open(path) as tar:
        size = tar.getmember(name).size
    records = WebDataset(path)
    monkeypatch.setattr(webdataset, limit, size)
    assert records[1].turns[0].answer == "Two."
    monkeypatch.setattr(webdataset, limit, size - 1)
    with pytest.raises(RecordError, match="b: a member has more than 0 MiB"):
        records[1]


def test_a_range_of_too_many_digits_is_refused():
    with pytest.raises((DataError, OSError)):
        WebDataset(f"a{{0..{'9' * 5000}}}.tar")
