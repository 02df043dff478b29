"""Frames as MERV's encoders see them, against Pillow and PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elva_jax.errors import VideoError
from elva_jax.evaluation.baselines import middle_frame
from elva_jax.inference.merge_map import frames_of
from elva_jax.video.clip import ClipSettings, keep_frames, read_clip
from elva_jax.video.layout import Clip
from elva_jax.video.merv import MervSettings, crop_square, read_merv_patches, to_square
from elva_jax.video.resize import LazyFrame

FRAMES, SLOTS, GRID = 8, 4, 2
VIEWS = (("stretch", 12, 0), ("bilinear", 10, 1))
PIXELS = SLOTS * (12**2 + 10**2) * 3


def merv_settings(copies=1, views=VIEWS, frames=FRAMES, slots=SLOTS):
    tokens = copies * slots * GRID**2
    values = -(-slots * sum(size**2 for _, size, _ in views) * 3 // tokens)
    return MervSettings(
        num_frames=frames, slots=slots, grid=GRID, copies=copies, views=views, patch_values=values
    )


def pictures(patches, views=VIEWS, slots=SLOTS):
    """Views [slots, size, size, 3] from the bytes of a clip."""
    out, flat = [], patches.reshape(-1)
    for _, size, _ in views:
        count = slots * size**2 * 3
        out.append(flat[:count].reshape(slots, size, size, 3))
        flat = flat[count:]
    assert not flat.any()
    return out


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("copies", [1, 3])
def test_patches_are_the_views_slot_by_slot(copies):
    frames = [noise(9, 17, seed) for seed in range(FRAMES)]
    merv = merv_settings(copies)
    patches = read_merv_patches([*map(LazyFrame.from_array, frames)], merv)
    assert patches.shape == (copies * SLOTS * GRID**2, merv.patch_values)
    assert merv.clip == Clip(((GRID, GRID),) * copies * SLOTS, bare=True)
    first, second = pictures(patches)
    for slot in range(SLOTS):
        even, odd = (LazyFrame.from_array(frames[2 * slot + k]) for k in (0, 1))
        np.testing.assert_array_equal(first[slot], even.at((12, 12)))
        theirs = Image.fromarray(odd.pixels()).resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(second[slot], np.asarray(theirs))


@given(st.integers(1, 60), st.integers(1, 40))
def test_frames_are_evenly_spaced_indices(count, places):
    pixels = [np.full((2, 2, 3), k, np.uint8) for k in range(count)]
    frames = [*map(LazyFrame.from_array, pixels)]
    views = (("stretch", 2, 0),)
    patches = read_merv_patches(frames, merv_settings(views=views, frames=places, slots=places))
    seen = pictures(patches, views, places)[0][:, 0, 0, 0]
    assert seen.tolist() == np.linspace(0, count - 1, places).astype(int).tolist()


UNEVEN = [0, 1, 2, 9, 10, 30]


@pytest.mark.parametrize(
    ("shown", "codec"),
    [
        ([*range(20)], dict(container="mp4")),
        (UNEVEN, dict(container="mp4")),
        ([0, 3], dict(container="mp4")),
        (UNEVEN, dict(container="matroska")),
        ([*range(20)], dict(container="avi", codec="mpeg4")),
    ],
)
def test_frames_of_a_file_are_counted_not_timed(clips, shown, codec):
    data = clips.encode(shown, **codec)
    views = (("stretch", 48, 0),)
    patches = read_merv_patches(data, merv_settings(views=views, frames=8, slots=8))
    seen = [clips.number(frame) for frame in pictures(patches, views, 8)[0]]
    assert seen == np.linspace(0, len(shown) - 1, 8).astype(int).tolist()


def test_span_as_published(clips):
    data, views = clips.encode(range(30)), (("stretch", 48, 0),)
    merv = merv_settings(views=views, frames=8, slots=8)
    patches = read_merv_patches(data, merv, span=(0.5, 2.0))
    seen = [clips.number(frame) for frame in pictures(patches, views, 8)[0]]
    assert seen == np.linspace(0.5 * 10, 2.0 * 10 - 1, 8).astype(int).tolist()


def test_read_clip_reads_for_merv():
    frames = [noise(9, 17, seed) for seed in range(3)]
    merv = merv_settings()
    given = ClipSettings(num_frames=1, longest_edge=28, patch_size=14, merv=merv)
    visual = read_clip(frames, given)
    assert visual.clip == merv.clip
    expected = read_merv_patches([*map(LazyFrame.from_array, frames)], merv)
    np.testing.assert_array_equal(visual.patches, expected)
    with pytest.raises(VideoError, match="mine: a frame must be a uint8 array"):
        read_clip([frames[0] / 2], given, name="mine")


@pytest.mark.parametrize("kept", [[2], [0, 3]])
def test_keep_frames_equals_a_video_of_those_frames(kept):
    frames = [noise(9, 17, seed) for seed in range(FRAMES)]
    views = (*VIEWS, ("stretch", 12, 1), ("bilinear", 10, 0))
    given = ClipSettings(num_frames=1, longest_edge=28, patch_size=14, merv=merv_settings(2, views))
    seen = read_clip(frames, given)
    expected = read_clip([frames[2 * slot] for slot in kept], given)
    assert keep_frames(seen, kept).clip == expected.clip
    np.testing.assert_array_equal(keep_frames(seen, kept).patches, expected.patches)
    if kept == [2]:
        np.testing.assert_array_equal(middle_frame(seen).patches, expected.patches)
    first = LazyFrame.from_array(frames[0]).at((12, 12))
    shown = [*frames_of(seen)]
    assert len(shown) == len(seen.clip.grids)
    np.testing.assert_array_equal(shown[SLOTS], first)


def test_images_and_animations(tmp_path, clips):
    image, still = noise(20, 30), tmp_path / "still.png"
    Image.fromarray(image).save(still)
    first, second = pictures(read_merv_patches(still, merv_settings()))
    assert (first == first[:1]).all()
    assert (second == second[:1]).all()
    np.testing.assert_array_equal(first[0], LazyFrame.from_array(image).at((12, 12)))

    moving = tmp_path / "moving.gif"
    drawn = [Image.fromarray(clips.numbered(k)) for k in range(5)]
    drawn[0].save(moving, save_all=True, append_images=drawn[1:], duration=[40, 40, 400, 40, 40])
    views = (("stretch", 48, 0),)
    patches = read_merv_patches(moving, merv_settings(views=views, frames=8, slots=8))
    seen = [clips.number(frame) for frame in pictures(patches, views, 8)[0]]
    assert seen == np.linspace(0, 4, 8).astype(int).tolist()


@settings(max_examples=25)
@given(st.integers(3, 70), st.integers(3, 70), st.integers(3, 40))
def test_crop_equals_torch(height, width, size):
    frame = noise(height, width)
    short = min(height, width)
    scaled = (int(height / short * size), int(width / short * size))
    theirs = torch.nn.functional.interpolate(
        torch.tensor(frame).permute(2, 0, 1)[None].float(), scaled, mode="bilinear"
    )[0].permute(1, 2, 0)
    top, left = (round((edge - size) / 2) for edge in scaled)
    expected = theirs[top : top + size, left : left + size].numpy()
    ours = crop_square(frame, size)
    assert ours.shape == (size, size, 3)
    np.testing.assert_allclose(ours, expected, atol=0.51)  # uint8


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (12, 12)])
def test_stretching_equals_pillow(shape):
    frame = noise(*shape)
    for geometry in ("bicubic", "bilinear"):
        theirs = Image.fromarray(frame).resize((16, 16), Image.Resampling[geometry.upper()])
        ours = to_square(LazyFrame.from_array(frame), geometry, 16)
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_errors_name_the_source(tmp_path, clips):
    with pytest.raises(VideoError, match=r"^clip 7: has no frames$"):
        read_merv_patches([], merv_settings(), name="clip 7")
    with pytest.raises(VideoError, match=r"missing.mp4: no such file"):
        read_merv_patches(tmp_path / "missing.mp4", merv_settings())
    whole = clips.encode(range(40))
    with pytest.raises(VideoError, match="cut"):
        read_merv_patches(whole[: len(whole) * 2 // 3], merv_settings(), name="cut")
