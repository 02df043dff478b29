"""Truncated Matroska files by their stated size."""

import numpy as np
import pytest

from elva_jax.errors import VideoError
from elva_jax.video.matroska import is_truncated
from elva_jax.video.read import read_frames

KINDS = {
    "mkv": {"container": "matroska"},
    "webm": {
        "container": "webm",
        "codec": "libvpx",
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_missing_byte_is_noticed(clips, tmp_path, kind):
    data = clips.encode(range(40), **KINDS[kind], size=(96, 96))
    path = tmp_path / "a"
    path.write_bytes(data)
    assert not is_truncated(data)
    assert not is_truncated(path)
    for length in (len(data) - 1, int(0.97 * len(data)), len(data) // 2):
        path.write_bytes(data[:length])
        assert is_truncated(data[:length])
        assert is_truncated(path)


def test_a_webm_without_its_last_frames_keeps_its_times(clips):
    """FFmpeg reads it without an error, and the loss is within a muxer's tolerance."""
    data = clips.encode(range(40), **KINDS["webm"], size=(96, 96))
    whole = read_frames(data, num_frames=5)
    for length in range(int(0.95 * len(data)), len(data), 3):
        try:
            cut = read_frames(data[:length], num_frames=5)
        except VideoError:
            continue
        assert cut.times.tolist() == whole.times.tolist()
        assert all(map(np.array_equal, cut.pixels, whole.pixels))
    with pytest.raises(VideoError, match="truncated"):
        read_frames(data[: int(0.95 * len(data))], num_frames=40)


@pytest.mark.parametrize("data", [b"", bytes(20), b"\x1a\x45\xdf\xa3", b"\xff" * 9, b"RIFF...."])
def test_other_bytes_state_no_size(data):
    assert not is_truncated(data)
