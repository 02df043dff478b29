"""Requests in the form of lmms-eval, which need not be installed here."""

import dataclasses
from typing import Any

import pytest

from elva_jax import testing

TASK = "local"


@dataclasses.dataclass
class Request:
    """What the plug-in reads of `lmms_eval.api.instance.Instance`."""

    args: tuple
    idx: int = 0
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@pytest.fixture(scope="session")
def ask():
    """Makes a request about a document; `*before` are its arguments but the last three."""

    def make(number, *before, idx=0):
        metadata = {"task": TASK, "doc_id": number}
        return Request((*before, number, TASK, "test"), idx, metadata)

    return make


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Three short videos."""
    folder = tmp_path_factory.mktemp("clips")
    return [
        str(testing.write_video(folder / f"{color}.mp4", testing.tiny_video(8, color=color)))
        for color in ("red", "green", "blue")
    ]


@pytest.fixture(scope="session")
def model():
    """It merges once and by ratio: videos of one size keep one length, so programs are shared."""
    merging = {"merge_policies": ("ratio",), "merge_thresholds": (0.0,), "merge_ratios": (0.5,)}
    return testing.tiny_model(num_layers=2, merge_layers=(1,), **merging)
