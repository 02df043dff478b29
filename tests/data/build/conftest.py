"""Fixtures: a source with good and bad records of every kind, and with real media."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax import cli


def video(
    seed: int,
    frames: int = 6,
    size: tuple[int, int] = (32, 48),
    rate: int = 6,
    path: Path | None = None,
) -> bytes:
    """A real mp4 whose gray levels encode clip and frame; in a file, its index comes first."""
    out = io.BytesIO()
    options = {"movflags": "faststart"} if path else {}
    with av.open(
        str(path) if path else out, "w", format="mp4", container_options=options
    ) as container:
        stream = container.add_stream("libx264", rate=rate, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.full((*size, 3), (seed * 7 + k * 20) % 250, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes() if path else out.getvalue()


def image(seed: int, form: str = "PNG", size: tuple[int, int] = (24, 40)) -> bytes:
    """An encoded image of a gray ramp."""
    out = io.BytesIO()
    ramp = np.linspace(seed % 100, 200, size[0] * size[1] * 3).astype(np.uint8).reshape(*size, 3)
    Image.fromarray(ramp).save(out, form)
    return out.getvalue()


def talk(*texts: str, **fields) -> dict:
    """A LLaVA record of alternating questions and answers."""
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {**fields, "conversations": turns}


def good() -> list[dict]:
    """Good records: several turns, several media, still images, a system turn, or no media."""
    records = [
        talk(f"<video>\nWhat is in clip {k}?", f"A grey field, number {k}.", video=f"clips/{k}.mp4")
        for k in range(8)
    ]
    records += [
        talk(
            "<image>\nWhat?",
            "A ramp.",
            "And in <image> and <video>?",
            "Ümläute – 二.",
            image=["a.png", "b.jpg"],
            video="clips/1.mp4",
        ),
        talk("Are you there?", "Yes.", "Still?", "Of course."),
        {"system": "Be brief.", **talk("Compare them.", "They differ.", images=["b.jpg", "a.png"])},
    ]
    return records


BAD = {
    "missing": (talk("What?", "This.", video="clips/none.mp4"), "no such file or folder"),
    "broken": (
        talk("What?", "This.", video="broken.mp4"),
        "not a video or image that can be read, or broken (Invalid data found when",
    ),
    "cut": (talk("What?", "This.", video="cut.mp4"), "truncated"),
    "outside": (
        talk("What?", "This.", video="../../etc/passwd"),
        "a media path leaves the root folder",
    ),
    "silent": (talk("What?", " "), "a question has no answer"),
    "empty": (talk(), "the conversation is empty"),
    "markers": (
        talk("<image> or <image>?", "Both.", image="a.png"),
        "2 <image> or <video> markers for 1 media",
    ),
    "half": (talk("<image>\nWhat?", "Half of it.", image="half.jpg"), "cannot be read ("),
}


def write_media(root: Path) -> Path:
    (root / "clips").mkdir(parents=True)
    for k in range(8):
        (root / "clips" / f"{k}.mp4").write_bytes(
            video(k, frames=4 + k, size=((32, 48), (64, 32))[k % 2])
        )
    (root / "a.png").write_bytes(image(1))
    (root / "b.jpg").write_bytes(image(2, "JPEG", (60, 100)))
    (root / "half.jpg").write_bytes(image(3, "JPEG", (200, 200))[:600])
    (root / "broken.mp4").write_bytes(b"no video " * 100)
    whole = video(9, frames=40, size=(64, 64), path=root / "cut.mp4")
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """notes.jsonl: good records, a bad one after each of the first eight, and an invalid line."""
    root = write_media(tmp_path_factory.mktemp("source") / "media")
    bad = [record for record, _ in BAD.values()]
    lines = []
    for k, record in enumerate(good()):
        lines.append(json.dumps(record, ensure_ascii=False))
        if k < len(bad):
            lines.append(json.dumps(bad[k]))
    path = root / "notes.jsonl"
    path.write_text("\n".join([*lines, "{oh no"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def elva(capsys):
    """Runs `elva data …` in this process; returns (status, output, errors)."""

    def run(*words) -> tuple[int, str, str]:
        try:
            status = cli.main(["data", *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def made():
    """The functions that create media and records."""

    class Made:
        bad = BAD

    for function in (video, image, talk, good, write_media):
        setattr(Made, function.__name__, staticmethod(function))
    return Made


def files(folder: Path) -> dict[str, bytes]:
    """All files under a folder except the state of a build, which TFDS does not read."""
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and "build" not in path.parts
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def contents():
    return files
