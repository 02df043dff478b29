"""Tests of the paper's resize rule, the resampling and the order of patches."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.video.layout import frame_tokens
from elva_jax.video.resize import patchify, resize_frame, target_size

EDGE = st.integers(1, 5000)


def test_square_frames_of_the_paper():
    for edge, tokens in ((112, 21), (224, 73), (336, 157), (448, 273), (672, 601), (1344, 2353)):
        height, width = target_size(2000, 2000, longest_edge=edge, patch_size=28)
        assert (height, width) == (edge, edge)
        assert frame_tokens(height // 28, width // 28) == tokens


@pytest.mark.parametrize(
    ("size", "limit", "patch", "upscale", "expected"),
    [
        ((720, 1280), 448, 28, False, (252, 448)),
        ((1280, 720), 448, 28, False, (448, 252)),
        ((720, 1280), 672, 28, False, (392, 672)),  # 378 is 13.5 patches, which is rounded up
        ((48, 64), 64, 16, False, (48, 64)),
        ((64, 48), 64, 16, False, (64, 48)),
        ((40, 64), 64, 16, False, (48, 64)),
        ((39, 64), 64, 16, False, (32, 64)),
        ((30, 40), 64, 16, False, (32, 48)),
        ((30, 40), 64, 16, True, (48, 64)),
        ((1, 3000), 448, 28, False, (28, 448)),
        ((3, 3), 448, 28, False, (28, 28)),
        ((500, 500), 450, 28, False, (448, 448)),
        ((500, 500), 475, 28, False, (448, 448)),  # 475 would round to 476, above the limit
    ],
)
def test_worked_examples(size, limit, patch, upscale, expected):
    assert target_size(*size, longest_edge=limit, patch_size=patch, upscale=upscale) == expected


@given(EDGE, EDGE, st.integers(28, 2000), st.integers(1, 28), st.booleans())
def test_target_size_follows_the_rule(height, width, limit, patch, upscale):
    result = target_size(height, width, longest_edge=limit, patch_size=patch, upscale=upscale)
    scale = Fraction(limit, max(height, width))
    if not upscale:
        scale = min(scale, Fraction(1))
    for edge, new in zip((height, width), result, strict=True):
        assert new % patch == 0
        assert patch <= new <= limit
        exact = edge * scale
        assert (
            abs(new - exact) <= Fraction(patch, 2) or new == patch or new == limit // patch * patch
        )
    assert (
        target_size(width, height, longest_edge=limit, patch_size=patch, upscale=upscale)
        == result[::-1]
    )


@given(EDGE, EDGE, st.integers(28, 2000), st.integers(1, 28), st.booleans())
def test_target_size_is_idempotent(height, width, limit, patch, upscale):
    limit = limit // patch * patch
    options = dict(longest_edge=limit, patch_size=patch)
    once = target_size(height, width, upscale=upscale, **options)
    assert target_size(*once, **options) == once


def test_invalid_sizes_are_refused():
    for arguments in ((100, 100, 27, 28), (0, 100, 448, 28), (100, 100, 448, 0)):
        height, width, limit, patch = arguments
        with pytest.raises(ConfigError, match=f"longest_edge={limit}"):
            target_size(height, width, longest_edge=limit, patch_size=patch)


def test_same_size_is_the_same_frame():
    frame = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    assert resize_frame(frame, (32, 48)) is frame


def test_resampling():
    ramp = np.broadcast_to(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (60, 90, 3))
    resized = resize_frame(np.ascontiguousarray(ramp), (16, 48))
    assert resized.shape == (16, 48, 3)
    assert resized.dtype == np.uint8
    ideal = (np.arange(48) + 0.5) / 48 * 90 - 0.5
    np.testing.assert_allclose(resized[8, 2:-2, 0], (ideal * 255 / 89)[2:-2], atol=2)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    # Antialiased to gray; point sampling would leave stripes.
    assert np.ptp(resize_frame(stripes, (16, 16))[:, 1:-1]) < 10
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 70, 3), np.uint8))
    np.testing.assert_array_equal(
        resize_frame(np.asarray(image), (28, 56)), image.resize((56, 28), Image.BICUBIC)
    )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patchify_takes_patches_row_by_row(rows, columns, patch):
    """Two frames; the second one has one more row of patches."""
    rng = np.random.default_rng(rows * columns)
    frames = [
        rng.integers(0, 255, (r * patch, columns * patch, 3), np.uint8) for r in (rows, rows + 1)
    ]
    patches = patchify(frames, patch)
    assert patches.shape == ((2 * rows + 1) * columns, patch * patch * 3)
    assert patches.dtype == np.uint8
    for k, frame in enumerate(frames):
        for r in range(rows + k):
            for c in range(columns):
                expected = frame[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                assert patches[(k * rows + r) * columns + c].tolist() == expected.ravel().tolist()


def test_no_frames_give_no_patches():
    assert patchify([], 4).shape == (0, 48)


def test_patchify_refuses_other_sizes():
    with pytest.raises(ConfigError, match="30x32"):
        patchify([np.zeros((30, 32, 3), np.uint8)], 16)
