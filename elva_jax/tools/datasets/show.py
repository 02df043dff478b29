"""Writes one record of a source to a folder, for people to look at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elva_jax.data import sources
from elva_jax.data.conversation import question_text
from elva_jax.data.example import Example, Media
from elva_jax.data.readers import moving_shapes
from elva_jax.data.record import conversation
from elva_jax.errors import DataError, RecordError
from elva_jax.tools.datasets.build import start
from elva_jax.utils.files import open_atomic, write_atomic
from elva_jax.video.read import read_frames
from elva_jax.video.resize import LazyFrame

SHEET_FRAMES = 16  # most frames per medium
SHEET_EDGE = 256  # pixels; larger frames are reduced to this edge, those up to half of it doubled
STARTS = {  # first bytes of a file -> its suffix
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"\x1aE\xdf\xa3": ".mkv",
    b"RIFF": ".webp",
    b"BM": ".bmp",
}


def show(
    data_dir: str | Path, name: str, split: str, index: int, out: str | Path, root: str = ""
) -> Path:
    """Writes media, a sheet of frames of each, the annotation, and the first open question.

    Args:
      data_dir: the folder of built data sets.
      name: a file, or a data set such as moving_shapes/easy.
      split: split of a data set.
      index: number of the record, from 0.
      out: folder to write to; created if missing.
      root: folder of a file's media paths; "": the file's folder.

    Returns:
      The path of the first medium, or of the annotation if there are no media.

    Raises:
      DataError: no such source, split or record.
      VideoError: a medium cannot be read.
    """
    examples = start.open_source(name, data_dir, split, root)
    if not 0 <= index < len(examples):
        where = name if sources.is_file(name) else f"{name} {split}"
        raise DataError(f"{where}: no record {index}; it has 0 … {len(examples) - 1}")
    example = examples[index]
    if not example.turns:
        raise RecordError(example.key, "the conversation is empty")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        _write(medium, folder, number, example.key)
        for number, medium in enumerate(example.media, 1)
    ]
    text = json.dumps(_annotation(examples, index, example), indent=2, ensure_ascii=False)
    write_atomic(folder / "annotation.json", text + "\n")
    turn = next((turn for turn in example.turns if turn.task == "open"), example.turns[0])
    write_atomic(folder / "question.txt", question_text(example, turn) + "\n")
    write_atomic(folder / "answer.txt", turn.answer + "\n")
    return (paths or [folder / "annotation.json"])[0]


def _annotation(examples: Sequence[Example], index: int, example: Example) -> Any:
    """The annotation of the record, or the conversation if it has none."""
    record = getattr(examples, "records", {index: {}})[index]
    return moving_shapes.annotation(record) if "annotation" in record else conversation(example)


def _write(medium: Media, folder: Path, number: int, key: str) -> Path:
    """Writes a medium and its sheet; the second one is named video-2 and frames-2, and so on."""
    ending = f"-{number}" if number > 1 else ""
    frames = read_frames(
        medium.source,
        num_frames=SHEET_FRAMES if medium.kind == "video" else 1,
        name=key if isinstance(medium.source, bytes) else None,
        transform=_small,
        span=medium.span,
    ).pixels
    scale = 2 if max(frames[0].shape) <= SHEET_EDGE // 2 else 1
    with open_atomic(folder / f"frames{ending}.png", "wb") as picture:
        sheet(frames, scale=scale).save(picture, "PNG")
    path = folder / f"{medium.kind}{ending}"
    if isinstance(medium.source, bytes):
        suffixes = (end for start, end in STARTS.items() if medium.source.startswith(start))
        path = path.with_suffix(next(suffixes, ".mp4"))
        write_atomic(path, medium.source)
    elif isinstance(medium.source, tuple):
        path.mkdir(exist_ok=True)
        for place, file in enumerate(medium.source):
            shutil.copyfile(file, path / f"{place:06}{Path(file).suffix}")
    elif Path(medium.source).is_dir():
        shutil.copytree(medium.source, path, dirs_exist_ok=True)
    else:
        path = path.with_suffix(Path(medium.source).suffix)
        shutil.copyfile(medium.source, path)
    return path


def _small(picture: LazyFrame) -> np.ndarray:
    """A picture reduced to the edge of a sheet, uint8 [h, w, 3]."""
    share = min(1.0, SHEET_EDGE / max(picture.height, picture.width))
    return picture.at((max(1, round(picture.height * share)), max(1, round(picture.width * share))))


def sheet(
    frames: Sequence[np.ndarray], columns: int = 8, scale: int = 2, gap: int = 4
) -> Image.Image:
    """Frames (uint8 HxWx3, one size) in rows of `columns`, enlarged `scale` times."""
    height, width = (side * scale for side in frames[0].shape[:2])
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    picture = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white"
    )
    for i, frame in enumerate(frames):
        tile = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(
            tile, (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        )
    return picture
