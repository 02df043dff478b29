"""Writes one record of a data set to a folder, for a person to look at."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from elva_jax.data import sources
from elva_jax.errors import DataError
from elva_jax.video.decode import read_frames

SHEET_FRAMES = 16  # most frames on the sheet


def show(data_dir: str | Path, name: str, split: str, index: int, out: str | Path) -> Path:
    """Writes the medium, a sheet of its frames, its annotation, and one of its questions with the answer.

    Args:
      data_dir: where data sets are built.
      name: data set, such as moving_shapes/easy.
      split: split of it.
      index: which record, from 0.
      out: folder to write to, made if missing.

    Returns:
      The path of the medium written.

    Raises:
      DataError: no such data set, split or record.
    """
    records = sources.open_source(name, split, data_dir)
    if not 0 <= index < len(records):
        raise DataError(f"{name} {split}: no record {index}; it has 0 … {len(records) - 1}")
    record = records[index]
    example = sources.to_example(record, ("open",), name)
    medium = example.media[0]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("video.mp4" if medium.kind == "video" else "image.png")
    path.write_bytes(medium.source)
    frames = read_frames(medium.source, num_frames=SHEET_FRAMES, name=example.key).pixels
    sheet(frames).save(folder / "frames.png")
    (folder / "annotation.json").write_text(json.dumps(sources.annotation(record), indent=2) + "\n")
    (folder / "question.txt").write_text(example.turns[0].question + "\n")
    (folder / "answer.txt").write_text(example.turns[0].answer + "\n")
    return path


def sheet(frames, columns: int = 8, scale: int = 2, gap: int = 4) -> Image.Image:
    """Frames (uint8 HxWx3, one size) side by side, `columns` to a row, enlarged `scale` times."""
    height, width = (side * scale for side in frames[0].shape[:2])
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    picture = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, frame in enumerate(frames):
        tile = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(tile, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return picture
