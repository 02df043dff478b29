"""What tasks of lmms-eval give as videos and images."""

import numpy as np
import pytest
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.errors import ElvaError
from elva_jax.evaluation.lmms.media import Pictures, read_visuals

GRAY = np.full((4, 6, 3), 90, np.uint8)
PICTURE = Image.fromarray(GRAY)


def test_paths_bytes_and_excerpts():
    assert read_visuals(None) == read_visuals([]) == read_visuals([None]) == ()
    assert read_visuals("a.mp4") == read_visuals(["a.mp4"]) == (Media("a.mp4", "video"),)
    assert read_visuals([b"x", "b.gif"]) == (Media(b"x", "video"), Media("b.gif", "video"))
    clip = Media("a.mp4", "video", start=1.5, end=3.0)
    for given in (
        {"type": "video", "path": "a.mp4", "video_start": 1.5, "video_end": 3},
        {"video": "a.mp4", "start": 1.5, "end": 3},
        {"url": {"path": "a.mp4", "start_time": 1.5}, "end_time": 3.0},
    ):
        assert read_visuals([given]) == (clip,)
    assert read_visuals([["1.png", "2.png"]]) == (Media(("1.png", "2.png"), "video"),)
    assert read_visuals({"bytes": b"x", "path": None}) == (Media(b"x", "video"),)


def test_pixels_are_one_image_or_the_frames_of_a_video():
    one = read_visuals(PICTURE)
    assert len(one) == 1
    for given in ([PICTURE.convert("L")], [PICTURE.convert("RGBA")], GRAY, [GRAY]):
        (same,) = read_visuals(given)
        assert isinstance(same, Pictures)
        assert same == one[0]
    (video,) = read_visuals([[PICTURE, GRAY]])
    assert video == read_visuals(np.stack([GRAY, GRAY]))[0]
    assert video != one[0]
    assert len(read_visuals([PICTURE, PICTURE])) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"array": [0.0], "sampling_rate": 16000}, "gives sound"),
        ({"type": "audio", "path": "a.wav"}, "gives sound"),
        (3, "a int in the place of a video"),
        ({"name": "a.mp4"}, "a dict in the place"),
        ([[]], "a list in the place"),
        ([["a.png", 3]], "a int in the place"),
        (GRAY.astype(np.float32), r"must be a uint8 array .* got float32\[4, 6, 3\]"),
        ({"path": "a", "start": 2, "end": 1}, "the excerpt from 2 s to 1 s is empty"),
        ({"path": "a", "start": float("nan")}, "start of an excerpt"),
    ],
)
def test_what_is_no_picture_is_named(given, message):
    with pytest.raises(ElvaError, match=message):
        read_visuals(given)


def test_a_damaged_image_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    with pytest.raises(ElvaError, match="an image cannot be decoded"):
        read_visuals(Image.open(tmp_path / "a.png"))
