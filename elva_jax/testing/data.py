"""A small data set of one's own: mp4 files and a LLaVA-style list of questions about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from elva_jax.testing.media import COLORS, tiny_video


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: int = 4) -> Path:
    """Writes frames, uint8 [H, W, 3] with even sides, as an mp4 file, and returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return Path(path)


def write_dataset(folder: str | Path, videos: int = 6) -> Path:
    """Writes videos of moving squares and `annotations.json`, and returns that file's path.

    Example:
      >>> import tempfile
      >>> from elva_jax import testing
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     testing.write_dataset(folder, videos=2).name
      'annotations.json'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(videos):
        color = list(COLORS)[index % len(COLORS)]
        name = f"{index}.mp4"
        write_video(folder / name, tiny_video(color=color, seed=index))
        question = "<video>\nWhat color is the square?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": color}]
        records.append({"id": str(index), "video": name, "conversations": turns})
    path = folder / "annotations.json"
    path.write_text(json.dumps(records, indent=1))
    return path
