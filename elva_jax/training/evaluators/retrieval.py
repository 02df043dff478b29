"""Retrieval by the contrastive head, among all held-out frames or videos.

retrieval          share of frames whose <FRAME> feature is nearest to the teacher's of that frame
retrieval/video    the same for the means over the frames of each example
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from elva_jax.training.evaluators.base import Observations


def evaluate(observed: Observations) -> Iterator[tuple[str, float]]:
    """`retrieval` and `retrieval/video`; neither without frames."""
    frames = observed.frames
    if frames is None or not len(frames.example):
        return
    yield "retrieval", recall(frames.ours, frames.theirs)
    _, index_M = np.unique(frames.example, return_inverse=True)
    yield ("retrieval/video", recall(_means(frames.ours, index_M), _means(frames.theirs, index_M)))


def recall(ours_NxC: np.ndarray, theirs_NxC: np.ndarray) -> float:
    """The share of rows of `ours` whose most similar row of `theirs` is the one of their number."""
    nearest_N = np.argmax(ours_NxC @ theirs_NxC.T, axis=1)
    return float(np.mean(nearest_N == np.arange(len(nearest_N))))


def _means(features_MxC: np.ndarray, index_M: np.ndarray) -> np.ndarray:
    """Normalized means of the rows with the same index."""
    sums = np.zeros((int(index_M.max()) + 1, features_MxC.shape[1]), np.float32)
    np.add.at(sums, index_M, features_MxC)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
