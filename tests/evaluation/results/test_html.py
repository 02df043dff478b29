"""The HTML page: self-contained whatever its texts hold, bounded, filtered in a real browser."""

import dataclasses
import html as markup
import json
import os
import re
import shutil
import subprocess

import pytest

from elva_jax import testing
from elva_jax.data.example import Media
from elva_jax.errors import ConfigError
from elva_jax.evaluation.results import html, thumbnails

BROWSER = os.environ.get("ELVA_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = (
    "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)> <!-- \u2028"
)


def page_of(run, media):
    """The run about given media, with hostile text in every place."""

    def changed(grade):
        number = int(grade.response.question.key[1:])
        question = dataclasses.replace(
            grade.response.question,
            media=(media[number % len(media)],),
            text=f"{HOSTILE} {number}",
            options=(HOSTILE, "blue"),
            references=(HOSTILE, "\ud800"),
            categories={HOSTILE: HOSTILE, "parity": ("even", "odd")[number % 2]},
        )
        response = dataclasses.replace(grade.response, question=question, text=HOSTILE)
        return dataclasses.replace(grade, response=response, details={HOSTILE: 1.0})

    one = {id(g.response): changed(g) for g in run[0].grades["generated"]}
    grades = tuple(one[id(g.response)] for g in run[0].grades["generated"])
    settings = {**run[0].settings, HOSTILE: HOSTILE}
    first = dataclasses.replace(
        run[0], title=f"A {HOSTILE}", grades={"generated": grades}, settings=settings
    )
    return [first, *run[1:]]


@pytest.fixture
def media(tmp_path):
    """Two videos, an excerpt of the first, a broken one and a missing one."""
    for name in ("one", "two"):
        testing.write_video(str(tmp_path / f"{name}.mp4"), testing.tiny_video(8))
    (tmp_path / "broken.mp4").write_bytes(b"junk")
    names = ("one", "two", "broken", "missing")
    found = [Media(str(tmp_path / f"{name}.mp4"), "video") for name in names]
    return [*found, dataclasses.replace(found[0], start=0.1, end=0.2)]


def content(page):
    """The JSON of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_page_is_self_contained_and_hostile_text_is_text(run, media, tmp_path):
    path = html.save(page_of(run, media), tmp_path / "deep" / "page.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(http|//|file)""", page)
    assert "default-src 'none'" in page
    data = content(page)
    assert data["items"][0]["text"] == f"{HOSTILE} 0"
    assert data["items"][0]["written"] == HOSTILE
    assert len(data["items"]) == 28
    frames = {m["name"]: (len(m["frames"]), m["note"]) for m in data["media"]}
    assert frames["one.mp4"] == frames["two.mp4"] == (4, "")
    assert frames["one.mp4 (0.1 s to 0.2 s)"][0] >= 1
    assert frames["missing.mp4"][0] == 0
    assert frames["broken.mp4"][1].startswith("no frames:")
    assert data["media"][0]["frames"][0].startswith("data:image/webp;base64,")
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(ConfigError, match="--html"):
        html.save(run, tmp_path)


def test_only_media_below_given_folders_are_read(run, media, tmp_path):
    """Results of others may name any file of this machine."""
    below = tmp_path / "below"
    below.mkdir()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).rename(below / name)
    (below / "link.mp4").symlink_to(testing.write_video(tmp_path / "x.mp4", testing.tiny_video(8)))
    inside = [Media(str(below / "one.mp4"), "video"), Media((str(below / "two.mp4"),), "video")]
    names = [str(tmp_path / "x.mp4"), str(below / "link.mp4"), f"{below}/../x.mp4", "x\0.mp4"]
    outside = [Media(name, "video") for name in names]
    outside.append(Media((str(below / "one.mp4"), str(tmp_path / "x.mp4")), "video"))
    pages = {
        folders: content(html.build(page_of(run[:1], [*inside, *outside]), folders=folders))
        for folders in ((), (below,))
    }
    notes = {folders: [m["note"] for m in page["media"]] for folders, page in pages.items()}
    assert notes[()] == [thumbnails.OUTSIDE] * 7
    assert [note == thumbnails.OUTSIDE for note in notes[(below,)]] == [False] * 2 + [True] * 5
    assert [bool(m["frames"]) for m in pages[(below,)]["media"]] == [True] + [False] * 6


def test_frames_are_a_sample_of_bounded_size(run, media, monkeypatch):
    nothing = Media((), "video")
    (empty,) = content(html.build(page_of(run[:1], [nothing])))["media"]
    assert empty == {
        "name": "0 frames from ",
        "frames": [],
        "note": "no frames: is a list without images",
    }
    none = content(html.build(page_of(run, media), frames=0))
    assert not any(m["frames"] or m["note"] for m in none["media"])
    page = html.build(page_of(run[:1], media), frames=2)
    assert sum(bool(m["frames"] or m["note"]) for m in content(page)["media"]) == 2
    assert "Frames of 1 of 5 media, up to 4 each (0.0 MiB)" in page
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 1)
    assert "Frames of 0 of 5 media" in html.build(page_of(run[:1], media))


def test_long_text_is_shortened_and_says_so(run, media):
    grade = run[0].grades["generated"][0]
    response = dataclasses.replace(grade.response, text="a" * 10_000)
    grades = (dataclasses.replace(grade, response=response),)
    one = dataclasses.replace(run[0], grades={"generated": grades})
    written = content(html.build([one], frames=0))["items"][0]["written"]
    assert written == "a" * html.LONGEST + " … (6000 more characters in the JSON file)"


def test_sample_is_spread_and_small_benchmarks_leave_their_share():
    small, large = ([Media(f"{kind}{n}", "video") for n in range(size)]
                    for kind, size in (("s", 3), ("l", 100)))  # fmt: skip
    chosen = thumbnails.choose([large, small], 13)
    assert len(chosen) == 13
    assert set(small) < set(chosen)
    positions = [large.index(m) for m in chosen if m in large]
    assert positions == list(range(5, 100, 10))
    assert thumbnails.choose([large, small], 0) == []
    assert len(thumbnails.choose([small], 10)) == 3


def dumped(path, state, profile):
    """The page's document after its script has run."""
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--dump-dom",
        f"{path.as_uri()}#{state}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium; name one in ELVA_CHROMIUM")
def test_browser_draws_and_filters(run, media, tmp_path):
    path = html.save(page_of(run, media), tmp_path / "page.html")
    document = dumped(path, "", tmp_path / "profile")
    assert '<output id="count">28 of 28 questions</output>' in document
    assert document.count("<article") == 28
    assert f"<title>{markup.escape(f'A {HOSTILE} · GQA', quote=False)}</title>" in document
    assert markup.escape(f"{HOSTILE} 7", quote=False) in document
    pictures = re.findall(r'<img src="([^"]*)"', document)
    assert len(pictures) >= 8 * 4
    assert all(picture.startswith("data:image/webp") for picture in pictures)
    state = "benchmark=0&way=generated&status=unparsed&category=parity%3A+even&search=HACKED+q2"
    document = dumped(path, state, tmp_path / "profile")
    # Of q2, q6, …, q22 those are q2 and q22.
    assert '<output id="count">2 of 28 questions</output>' in document
    assert re.findall(r'<article class="(\w+)"', document) == ["unparsed"] * 2
