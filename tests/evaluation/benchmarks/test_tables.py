"""Tests of reading annotation files in every format, and of finding media."""

import json
import os

import pytest
from tests.evaluation.benchmarks.helpers import touch, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks import tables

ROWS = [{"id": "1", "text": "a, b"}, {"id": "2", "text": 'two\n"lines"'}]


def rows(*files):
    return [dict(record.fields) for record in tables.read_records(files)]


def test_all_formats_hold_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=1)
    files = [
        write(tmp_path / "rows.json", ROWS),
        write(
            tmp_path / "rows.jsonl",
            '{"id": "1", "text": "a, b"}\n\n{"id": "2", "text": "two\\n\\"lines\\""}\n',
        ),
        write(tmp_path / "lines.json", "\ufeff" + "\r\n".join(map(json.dumps, ROWS))),
        write(tmp_path / "rows.csv", '\ufeffid,text\r\n1,"a, b"\r\n2,"two\n""lines"""\r\n'),
        write(tmp_path / "rows.tsv", 'id\ttext\n1\ta, b\n2\t"two\n""lines"""\n'),
        tmp_path / "rows.parquet",
    ]
    for file in files:
        assert rows(file) == ROWS, file.name
    assert rows(*files) == ROWS * len(files)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[1", "is not JSON"),
        ("x.json", "{}", "expected a JSON array"),
        ("x.json", "[1]", r"x.json\[0\]: is 1, no object"),
        ("x.jsonl", '{"a": 1}\n{', "x.jsonl:2: is not JSON"),
        ("x.csv", "a,b\n1\n", r"x.csv\[0\]: does not have the header's 2 columns"),
        ("x.csv", "a,b\n1,2,3\n", "does not have the header's 2 columns"),
        ("x.csv", "a\n" + "x" * 1001, "is not CSV"),
        ("x.parquet", "PAR1", "cannot be loaded"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(tables, "LARGEST_FIELD", 1000)
    with pytest.raises(DataError, match=message) as raised:
        tables.read_records([write(tmp_path / name, content)])
    assert "\n" not in str(raised.value)


def test_a_large_field_of_base64_is_read(tmp_path):
    file = write(tmp_path / "x.tsv", "index\timage\n1\t" + "A" * 300_000 + "\n")
    assert len(rows(file)[0]["image"]) == 300_000


def test_fields_are_found_under_several_names():
    record = tables.Record("x[0]", {"a": None, "b": 3, "c": ["x", 2], "d": True})
    assert record.text("a", "b") == "3"
    assert record.texts("c") == ("x", "2")
    assert record.get("a", default=7) == 7
    for name, message in (("a", "no field 'a'"), ("c", "no text"), ("d", "no text")):
        with pytest.raises(RecordError, match=message):
            record.text(name)
    with pytest.raises(RecordError, match="no list"):
        record.texts("b")
    assert tables.as_integer(" -3 ", "k", "n") == -3
    for value in ("3.0", True, None, "9" * 19, "²"):
        with pytest.raises(RecordError, match="no whole number"):
            tables.as_integer(value, "k", "n")


def test_media_are_found_below_the_root_whatever_their_suffix(tmp_path):
    direct = touch(tmp_path / "video" / "a.mp4")
    deep = touch(tmp_path / "parts" / "1" / "b.x.webm")
    one = touch(tmp_path / "one" / "same.mp4")
    two = touch(tmp_path / "two" / "sub" / "same.mkv")
    frames = touch(tmp_path / "frames" / "clip" / "00001.jpg")
    image = touch(tmp_path / "images" / "a.jpg")
    folder = tables.MediaFolder(tmp_path)

    def found(name, *folders, kind="video"):
        return folder.locate(name, "q", kind, folders).source

    assert found("a", "video") == found("a.mp4", "video") == found("a.avi") == direct
    assert found("b.x") == found("b.x.mp4", "video") == deep
    assert found("same", "one") == one
    assert found("same.mp4", "nowhere", "two/sub") == two
    assert found("sub/same") == two
    assert found("clip") == frames.removesuffix("/00001.jpg")
    assert found("a", kind="image") == image
    assert found("gone", "video") == str(tmp_path / "video" / "gone.mp4")
    assert found("x/gone.avi") == str(tmp_path / "x" / "gone.avi")


def test_media_that_are_not_clear_are_refused_or_missing(tmp_path):
    touch(tmp_path / "1" / "data" / "same.mp4")
    touch(tmp_path / "2" / "data" / "same.mp4")
    folder = tables.MediaFolder(tmp_path)
    with pytest.raises(RecordError, match=r"q: the medium same is 1/data/same.mp4 and 2/data/same"):
        folder.locate("same", "q", folders=("data",))
    assert folder.locate("same", "q").source == str(tmp_path / "same.mp4")
    for name in (
        "../same",
        "/etc/passwd",
        "one/../../x",
        "a\0b",
        "\ud800",
        " ",
        "é" * 130,
        "a/" * 2000,
    ):
        with pytest.raises(RecordError, match=r"leaves the root|empty or has characters|too long"):
            folder.locate(name, "q")


def test_links_are_followed_and_circles_end(tmp_path):
    store = touch(tmp_path / "blobs" / "123")
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "v.mp4").symlink_to(store)
    (tmp_path / "root" / "data" / "again").symlink_to(tmp_path / "root")
    folder = tables.MediaFolder(tmp_path / "root")
    assert folder.locate("v", "q").source == str(tmp_path / "root" / "data" / "v.mp4")
    assert folder.locate("w", "q").source == str(tmp_path / "root" / "w.mp4")


def test_a_link_to_a_folder_above_the_root_is_not_searched(tmp_path, monkeypatch):
    """Such as /, with all that is on the machine."""
    touch(tmp_path / "secret" / "v.mp4")
    root, near = tmp_path / "data" / "root", touch(tmp_path / "near" / "w.mp4")
    root.mkdir(parents=True)
    (root / "up").symlink_to(tmp_path)
    (root / "all").symlink_to("/")
    (root / "beside").symlink_to(tmp_path / "near")
    walked = []
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: (walked.append(each[0]) or each for each in walk(*a, **k))
    )
    folder = tables.MediaFolder(root)
    assert folder.locate("v", "q").source == str(root / "v.mp4")  # expected, and not there
    assert os.path.samefile(folder.locate("w", "q").source, near)
    assert sorted(walked) == [str(root), str(root / "all"), str(root / "beside"), str(root / "up")]
