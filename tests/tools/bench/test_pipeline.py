"""Tests of the input pipeline's benchmark on a small clip."""

import av
import numpy as np
import pytest


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for t in range(20):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 10 * t, np.uint8)))
            )
        container.mux(stream.encode())
    return path


def test_report_has_parts_shares_and_memory(bench, clip):
    words = [
        "--frames",
        "4",
        "--longest-edge",
        "64",
        "--patch-size",
        "16",
        "--repeats",
        "1",
        "--samples",
        "20",
    ]
    status, out, _, report = bench(
        "pipeline", str(clip), *words, "--examples-per-step", "8", "--step-seconds", "2"
    )
    assert status == 0
    (row,) = report["rows"]
    assert (row["frames"], row["size"]) == (4, [48, 64])
    seconds = row["seconds"]
    assert report["decode_share_of_bare"] == pytest.approx(seconds["bare"] / seconds["decode"])
    assert report["cores"] == pytest.approx(
        4 * (seconds["decode"] + seconds["layout"] + seconds["pack"])
    )
    assert [mark["samples"] for mark in report["memory"]["marks"]] == list(range(2, 21, 2))
    assert all(mark["resident_bytes"] > 2**20 for mark in report["memory"]["marks"])
    assert "samples per second and core" in out


def test_flags_that_require_each_other(bench, clip):
    status, _, err, _ = bench("pipeline", str(clip), "--step-seconds", "2")
    assert status == 2
    assert "--examples-per-step and --step-seconds belong together" in err
