"""Retrieval by the contrastive heads, among all held-out frames or videos.

retrieval          share of frames whose <FRAME> feature is nearest to the teacher's of that frame
retrieval/video    the same for the means over the frames of each example

With several teachers, nearest is by the mean of the cosines over them, and retrieval/frame/NAME
and retrieval/video/NAME are those of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from elva_jax.tasks.evaluators.base import Observations


def evaluate(observed: Observations) -> Iterator[tuple[str, float]]:
    """`retrieval` and `retrieval/video`; neither without frames."""
    frames = observed.frames
    if frames is None or not len(frames.example):
        return
    _, index_M = np.unique(frames.example, return_inverse=True)
    pairs = {name: (ours, frames.theirs[name]) for name, ours in frames.ours.items()}
    means = {
        name: (_means(ours, index_M), _means(theirs, index_M))
        for name, (ours, theirs) in pairs.items()
    }
    yield "retrieval", recall(pairs.values())
    yield "retrieval/video", recall(means.values())
    if len(pairs) > 1:
        for name in pairs:
            yield f"retrieval/frame/{name}", recall([pairs[name]])
            yield f"retrieval/video/{name}", recall([means[name]])


def recall(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The share of rows of ours whose most similar row of theirs is the one of their number.

    Args:
      pairs: ours and theirs [N, C] of each teacher; the products of all are added.
    """
    products_NxN = sum(ours_NxC @ theirs_NxC.T for ours_NxC, theirs_NxC in pairs)
    nearest_N = np.argmax(products_NxN, axis=1)
    return float(np.mean(nearest_N == np.arange(len(nearest_N))))


def _means(features_MxC: np.ndarray, index_M: np.ndarray) -> np.ndarray:
    """Normalized means of the rows with the same index."""
    sums = np.zeros((int(index_M.max()) + 1, features_MxC.shape[1]), np.float32)
    np.add.at(sums, index_M, features_MxC)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
