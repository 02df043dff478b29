"""Tests of hybrid resolution from the video file to tokens and answers."""

import io
from operator import methodcaller

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax.cli import main
from elva_jax.data.decode_example import ConversationDecoder
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.errors import ElvaError, VideoError
from elva_jax.inference.model import ElvaModel
from elva_jax.video.clip import ClipSettings, read_clip
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Kind, build_layout
from elva_jax.video.read import read_frames
from elva_jax.video.resize import patchify, resize_frame, target_size

QUESTION = "What colour is the circle?"
STAGE = dict(num_frames=4, fps=0.0, longest_edge=32, patch_size=8)


def film(count: int, height: int = 48, width: int = 64, cuts: tuple[int, ...] = ()) -> bytes:
    """A real mp4 of a noise image that is replaced at each cut and gets brighter in each frame."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(count):
            if t in (0, *cuts):
                picture = np.kron(
                    rng.integers(0, 200, (height // 8, width // 8, 3), np.uint8),
                    np.ones((8, 8, 1), np.uint8),
                )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture + np.uint8(t))))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def square_film():
    return read_frames(film(40, 672, 672), num_frames=40).pixels


@pytest.mark.parametrize(
    ("high", "low", "tokens"),
    [(8, 16, 5976), (8, 32, 7144), (16, 0, 9616), (16, 8, 10200), (16, 16, 10784), (32, 0, 19232)],
)
def test_table_6(square_film, high, low, tokens):
    """The paper's token counts for the frames of an mp4."""
    seen = read_clip(
        square_film[: high + low],
        ClipSettings(
            num_frames=1,
            fps=0.0,
            longest_edge=28,
            patch_size=28,
            hybrid=Hybrid(high_frames=high, low_frames=low, high_edge=672, low_edge=224),
        ),
    )
    layout = build_layout([seen.clip])
    assert layout.length == tokens
    assert len(seen.patches) == (layout.kind == Kind.PATCH).sum() == high * 24 * 24 + low * 8 * 8


@pytest.mark.parametrize(
    ("policy", "high"),
    [
        ("interleave", [0, 1, 0, 0, 1, 0, 1, 0]),
        ("ends", [1, 1, 0, 0, 0, 0, 0, 1]),
        ("scene", [1, 0, 1, 0, 0, 0, 1, 0]),
    ],
)
def test_high_frames_follow_the_cuts_of_a_video(policy, high):
    """Frames 1, 3, … 15 of 16 are sampled; the cuts are at 4 and 12, so 5 and 13 are high."""
    source, hybrid = (
        film(16, cuts=(4, 12)),
        Hybrid(high_frames=3, low_frames=5, high_edge=32, low_edge=16, policy=policy),
    )
    decoded = read_frames(source, num_frames=8).pixels
    seen = read_clip(source, ClipSettings(**STAGE, hybrid=hybrid))
    sizes = [target_size(48, 64, longest_edge=32 if large else 16, patch_size=8) for large in high]
    assert seen.clip.grids == tuple((rows // 8, columns // 8) for rows, columns in sizes)
    drawn = {
        size: read_frames(source, num_frames=8, transform=methodcaller("at", size)).pixels
        for size in set(sizes)
    }
    wanted = [patchify([drawn[size][k]], 8) for k, size in enumerate(sizes)]
    np.testing.assert_array_equal(seen.patches, np.concatenate(wanted))
    at_hand = read_clip(decoded, ClipSettings(**STAGE, hybrid=hybrid))
    assert at_hand.clip == seen.clip
    np.testing.assert_array_equal(
        at_hand.patches,
        patchify([resize_frame(f, s) for f, s in zip(decoded, sizes, strict=True)], 8),
    )


@pytest.mark.parametrize("policy", ["interleave", "ends", "scene"])
def test_short_videos_keep_the_share_of_high_frames(policy):
    for count, wanted, high in (
        (5, Hybrid(high_frames=8, low_frames=8, high_edge=32, low_edge=16, policy=policy), 2),
        (3, Hybrid(high_frames=1, low_frames=30, high_edge=32, low_edge=16, policy=policy), 1),
        (3, Hybrid(high_frames=0, low_frames=9, high_edge=32, low_edge=16, policy=policy), 0),
    ):
        grids = read_clip(film(count), ClipSettings(**STAGE, hybrid=wanted)).clip.grids
        assert (grids.count((3, 4)), grids.count((2, 2))) == (high, count - high)
    picture = read_clip(
        [np.zeros((48, 64, 3), np.uint8)],
        ClipSettings(
            **STAGE,
            hybrid=Hybrid(high_frames=1, low_frames=30, high_edge=32, low_edge=16, policy=policy),
        ),
    )
    assert picture.clip.grids == ((3, 4),)
    with pytest.raises(VideoError, match="has no frames"):
        read_clip([], ClipSettings(**STAGE, hybrid=Hybrid(policy=policy)))


def test_low_frames_alone_equal_a_video_at_that_edge():
    """High frames alone likewise equal a video at their edge."""
    source = film(8)
    plain = read_clip(source, ClipSettings(**{**STAGE, "longest_edge": 16}))
    for hybrid in (
        Hybrid(high_frames=0, low_frames=4, low_edge=16),
        Hybrid(high_frames=4, low_frames=0, high_edge=16),
    ):
        seen = read_clip(source, ClipSettings(**STAGE, hybrid=hybrid))
        assert seen.clip == plain.clip
        np.testing.assert_array_equal(seen.patches, plain.patches)


def test_one_pixel_is_a_frame():
    frames = [np.full((1, 1, 3), t, np.uint8) for t in range(4)]
    assert (
        read_clip(
            frames,
            ClipSettings(
                **STAGE,
                hybrid=Hybrid(
                    high_frames=2, low_frames=2, high_edge=32, low_edge=16, policy="scene"
                ),
            ),
        ).clip.grids
        == ((1, 1),) * 4
    )


@pytest.mark.parametrize("sampling", ["plain", "fps", "hybrid", "image"])
def test_training_and_inference_read_identical_pixels(config, params, tokenizer, model, sampling):
    """The training decoder and the model read the same bytes to bitwise equal pixels."""
    config = config.copy_and_resolve_references()
    stage = config.stages[model.stage]
    data, source, kind, frames = stage.data, film(12, cuts=(5,)), "video", None
    if sampling == "fps":
        data.fps, data.num_frames, data.upscale, data.longest_edge = 4.0, 5, True, 96
    elif sampling == "hybrid":
        data.update(num_frames=2, num_low_frames=3, hybrid_probability=1.0)
        data.update(longest_edge=32, low_longest_edge=16, hybrid_policy="scene")
        frames = Hybrid(high_frames=2, low_frames=3, high_edge=32, low_edge=16, policy="scene")
    elif sampling == "image":
        image, kind = io.BytesIO(), "image"
        pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(pixels).save(image, "PNG")
        source = image.getvalue()
    data.update(seq_len=10_000, max_patches=10_000, max_frames=100)
    decoder = ConversationDecoder(None, config, stage, tokenizer, TeacherFrames(sizes=(24,)))
    example = Example("x", (Media(source, kind),), (Turn(QUESTION, "Red."),))
    trained = decoder.prepare(example, np.random.default_rng(0))
    reader = ElvaModel(config, {"elva": params}, tokenizer)
    asked = reader.read_media(source, frames=frames)
    np.testing.assert_array_equal(trained.patches, asked.patches)
    cells = trained.layout.cell[trained.layout.kind == Kind.PATCH]
    alone = build_layout([asked.clip])
    np.testing.assert_array_equal(cells, alone.cell[alone.kind == Kind.PATCH])
    assert len(trained.teacher_frames[24]) == len(asked.clip.grids)


class Stopped(Exception):
    """An exception that carries the arguments of prefill."""


def test_answers_and_scores_use_the_hybrid_video(model, monkeypatch):
    def stop(media, **_):
        raise Stopped(media)

    source, hybrid = film(8), Hybrid(high_frames=1, low_frames=2, high_edge=32, low_edge=16)
    wanted = read_clip(source, ClipSettings(**STAGE, hybrid=hybrid))
    assert wanted.clip.grids == ((2, 2), (3, 4), (2, 2))
    monkeypatch.setattr(model, "prefill", stop)
    for ask in (model.answer, lambda *args, **options: model.score(*args, ["red"], **options)):
        with pytest.raises(Stopped) as caught:
            ask(source, QUESTION, frames=hybrid)
        ((seen,),) = caught.value.args[0]
        assert seen.clip == wanted.clip
        np.testing.assert_array_equal(seen.patches, wanted.patches)


def test_the_command_reads_at_two_resolutions(model, tmp_path, monkeypatch, capsys):
    path = tmp_path / "film.mp4"
    path.write_bytes(film(8))
    seen = []
    monkeypatch.setattr("elva_jax.load", lambda path, **options: model)
    read = model.read_media
    monkeypatch.setattr(
        model,
        "read_media",
        lambda *args, **options: seen.append(options["frames"]) or read(path, frames=2),
    )
    words = [
        "generate",
        "--checkpoint",
        "x",
        "--video",
        str(path),
        "--prompt",
        QUESTION,
        "--max-new-tokens",
        "4",
    ]
    for flags, hybrid in (
        ([], None),
        (["--high-frames", "1"], Hybrid(high_frames=1, low_frames=32, high_edge=32, low_edge=16)),
        (["--low-frames", "0"], Hybrid(high_frames=32, low_frames=0, high_edge=32, low_edge=16)),
        (
            ["--high-policy", "scene", "--high-edge", "64"],
            Hybrid(high_frames=32, low_frames=32, high_edge=64, low_edge=32, policy="scene"),
        ),
        (
            ["--high-frames", "2", "--low-frames", "3", "--high-edge", "24", "--low-edge", "8"],
            Hybrid(high_frames=2, low_frames=3, high_edge=24, low_edge=8),
        ),
    ):
        assert main([*words, *flags]) == 0
        assert seen.pop() == hybrid
    assert main([*words, "--high-frames", "0", "--low-frames", "0"]) == 2
    assert main([*words, "--low-edge", "40"]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert messages == [
        "elva generate: high_frames=0 and low_frames=0: a video needs at least one frame",
        "elva generate: low_edge=40 exceeds high_edge=32; make it smaller, or swap them",
    ]


def test_an_edge_below_a_patch_is_refused(model):
    with pytest.raises(ElvaError, match="longest_edge=5 must hold at least one patch of 8"):
        model.read_media(
            film(3), frames=Hybrid(high_frames=1, low_frames=2, high_edge=32, low_edge=5)
        )
