"""Tests of WebVid's CSV files."""

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elva_jax.data.example import Media, Turn
from elva_jax.data.readers.records import QUESTIONS
from elva_jax.data.readers.webvid import WebVidFile
from elva_jax.errors import DataError, RecordError

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


def test_rows_are_clips_with_captions(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(
        "\ufeff"
        + HEADER
        + "21179416,https://x/21179416.mp4,PT00H00M11S,006001_006050,"
        + '"Aerial shot, ""winter"" forest\nfrom above"\n\n'
        + "5629184,https://x/5629184.mp4,PT00H00M29S,071501_071550,Cars on a bridge — at night\r\n"
    )
    first, second = WebVidFile(path)
    assert first.media == (
        Media(str(tmp_path.resolve() / "006001_006050" / "21179416.mp4"), "video"),
    )
    assert first.turns == (
        Turn(QUESTIONS["video"], 'Aerial shot, "winter" forest\nfrom above', task="caption"),
    )
    assert second.turns[0].answer == "Cars on a bridge — at night"
    assert (first.key, second.key) == ("val.csv:2", "val.csv:5")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=5)
)
def test_captions_are_read_as_by_csv(tmp_path, captions):
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("videoid", "name"), *((k, caption) for k, caption in enumerate(captions))]
        )
    assert [example.turns[0].answer for example in WebVidFile(path)] == captions


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,u,d,p", "does not have the header's 5 columns"),
        (b"1,u,d,p,a,b", "does not have the header's 5 columns"),
        (b",u,d,p,A cat", "has no videoid"),
        (b"1,u,d,p,Caf\xe9", "is not UTF-8 text"),
        (b"1,u,d,../..,A cat", "a media path leaves the root folder"),
        (b"/etc/passwd,u,d,,A cat", "a media path leaves the root folder"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, reason):
    path = tmp_path / "val.csv"
    path.write_bytes(HEADER.encode() + b"7,u,d,p,A dog\n" + row + b"\n8,u,d,p,A bird\n")
    rows = WebVidFile(path)
    assert [rows[k].turns[0].answer for k in (0, 2)] == ["A dog", "A bird"]
    with pytest.raises(RecordError, match=rf"^val\.csv:3: {reason}$"):
        rows[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,question,answer\n1,a,b\n", "line 1: no column 'videoid'"),
        ("", "line 1: no column 'videoid'"),
        (
            HEADER + '1,u,d,p,A\n2,u,d,p,"A cat\n3,u,d,p,A dog\n',
            r"line 3: broken CSV \(unexpected end of data\)",
        ),
    ],
)
def test_files_of_another_format_are_refused(tmp_path, text, message):
    path = tmp_path / "val.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"val\.csv: {message}"):
        WebVidFile(path)
