"""Tests of decoding one example: kept turns, layout of the media, and failures."""

import numpy as np
import pytest

from elva_jax.data import conversation
from elva_jax.data.decode_example import CaptionDecoder, ConversationDecoder, choose_turns
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.mixture import Mixture
from elva_jax.data.safe_read import Rejected
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.errors import DataError, RecordError
from elva_jax.video.clip import ClipSettings, read_clip
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Clip, Kind, build_layout

TURNS = tuple(Turn(f"Question {'very ' * k}number {k}?", f"Answer {k}.") for k in range(5))


@pytest.fixture
def make(config, tokenizer):
    def make(*teacher_sizes, **data):
        config.stages.video.data.update(data)
        teacher = TeacherFrames(sizes=teacher_sizes)
        return ConversationDecoder(
            Mixture(config, "video"), config, config.stages.video, tokenizer, teacher
        )

    return make


@pytest.fixture
def still(data_dir):
    """A 48 x 32 image: 3 x 2 patches."""
    from elva_jax.data.sources import open_source, to_example

    return to_example(open_source("moving_shapes/small", "train", data_dir)[3]).media[0]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("length", range(80, 220, 20))
def test_as_many_turns_as_fit_are_kept(make, still, tokenizer, length, ordered):
    decoder = make(seq_len=length, max_turns=5)
    example = Example("x", (still,), TURNS, ordered=ordered)
    layout = decoder.prepare(example, np.random.default_rng(0)).layout
    chosen = choose_turns(example, 5, np.random.default_rng(0))
    clips = [Clip(((3, 2),))]
    sizes = [
        build_layout(
            conversation.render(conversation.truncate(chosen, k), tokenizer, clips, "Be brief.")
        ).length
        for k in range(1, 6)
    ]
    assert layout.length == max(size for size in sizes if size <= length)


def test_turns_that_cannot_fit_are_dropped_by_their_characters(make):
    """Tokenizing 20 MB would take half a minute and gigabytes."""
    decoder, rng = make(seq_len=200, max_turns=5), np.random.default_rng(0)
    long = Turn("word " * 4_000_000, "Yes.")
    kept = decoder.prepare(Example("x", (), (TURNS[0], long, TURNS[1]), ordered=True), rng)
    alone = decoder.prepare(Example("x", (), TURNS[:1]), rng)
    np.testing.assert_array_equal(kept.layout.token_id, alone.layout.token_id)
    with pytest.raises(DataError, match="exceeds the row's tokens"):
        decoder.prepare(Example("x", (), (long,)), rng)


def test_turns_are_chosen_at_random_unless_order_matters(still):
    free = Example("x", (still,), TURNS)
    chosen = {choose_turns(free, 2, np.random.default_rng(seed)).turns for seed in range(30)}
    assert len(chosen) > 10
    assert all(len(set(turns)) == 2 for turns in chosen)
    assert (
        choose_turns(Example("x", (still,), TURNS, ordered=True), 2, np.random.default_rng(0)).turns
        == TURNS[:2]
    )
    marked = Example("x", (still,), (Turn("<image> Who?", "A."), *TURNS))
    assert choose_turns(marked, 2, np.random.default_rng(0)).turns == (
        Turn("<image> Who?", "A."),
        TURNS[0],
    )


def test_turns_about_the_same_fact_are_never_combined(still):
    pairs = tuple(
        Turn(f"Q{k}", f"A{k} {task}", task=task, about=f"question {k // 2}")
        for k in range(6)
        for task in ("open", "choice")
    )
    for seed in range(20):
        turns = choose_turns(
            Example("x", (still,), (*pairs, *TURNS)), 20, np.random.default_rng(seed)
        ).turns
        assert sorted(turn.about for turn in turns) == [""] * 5 + [
            "question 0",
            "question 1",
            "question 2",
        ]


def test_several_media_keep_their_order(make, still, data_dir):
    from elva_jax.data.sources import open_source, to_example

    # Three 32 x 32 frames with gray levels 20, 60, 100.
    video = to_example(open_source("moving_shapes/small", "train", data_dir)[0]).media[0]
    example = Example("x", (still, video), (Turn("Between <image> and <video>?", "Nothing."),))
    made = make(12, 20).prepare(example, np.random.default_rng(0))
    assert made.counts.frames == 4
    assert made.patches.shape == (6 + 3 * 4, 768)
    np.testing.assert_allclose(
        made.patches.mean(1), [15] * 6 + [20] * 4 + [60] * 4 + [100] * 4, atol=4
    )
    for side, frames in made.teacher_frames.items():
        assert frames.shape == (4, side, side, 3)
        np.testing.assert_allclose(frames.mean((1, 2, 3)), [15, 20, 60, 100], atol=4)
    assert set(made.teacher_frames) == {12, 20}
    assert made.media.tolist() == [0, 1, 1, 1]
    where = [np.flatnonzero(made.layout.frame == f)[0] for f in range(4)]
    between = made.layout.kind[where[0] : where[1]]
    assert (between == Kind.TEXT).any()


@pytest.mark.parametrize("policy", ["interleave", "ends", "scene"])
def test_hybrid_resolution_equals_inference_and_the_teacher_has_the_same_frames(
    make, data_dir, policy
):
    """A clip of six 48 x 32 frames with gray levels 5 to 105; all but the third are sampled."""
    from elva_jax.data.sources import open_source, to_example

    video = to_example(open_source("moving_shapes/small", "train", data_dir)[1]).media[0]
    hybrid = dict(
        num_low_frames=2, low_longest_edge=16, hybrid_policy=policy, hybrid_probability=1.0
    )
    made = make(20, **hybrid).prepare(Example("x", (video,), TURNS[:1]), np.random.default_rng(0))
    seen = read_clip(
        video.source,
        ClipSettings(
            num_frames=1,
            longest_edge=48,
            patch_size=16,
            hybrid=Hybrid(high_frames=3, low_frames=2, high_edge=48, low_edge=16, policy=policy),
        ),
    )
    np.testing.assert_array_equal(made.patches, seen.patches)
    assert sorted(seen.clip.grids) == [(1, 1)] * 2 + [(2, 3)] * 3
    cells = made.layout.cell[made.layout.kind == Kind.PATCH]
    assert [tuple(cell) for cell in cells[:, 2:]] == [
        grid for grid in seen.clip.grids for _ in range(grid[0] * grid[1])
    ]
    brightness = [5, 25, 65, 85, 105]
    np.testing.assert_allclose(made.teacher_frames[20].mean((1, 2, 3)), brightness, atol=4)
    np.testing.assert_allclose(
        made.patches.mean(1), np.repeat(brightness, [r * c for r, c in seen.clip.grids]), atol=4
    )


def test_images_are_never_read_at_low_resolution(make, still):
    decoder = make(num_low_frames=2, low_longest_edge=16, hybrid_probability=1.0)
    assert (
        len(decoder.prepare(Example("x", (still,), TURNS[:1]), np.random.default_rng(0)).patches)
        == 6
    )


def test_media_of_dropped_turns_are_dropped(make, still):
    example = Example(
        "x",
        (still, still),
        (Turn("<image> Who?", "A dog."), Turn("<image> And " + "who " * 60 + "?", "A cat.")),
    )
    made = make(20, seq_len=100).prepare(example, np.random.default_rng(0))
    assert made.counts.frames == len(made.teacher_frames[20]) == len(made.media) == 1
    assert len(made.patches) == made.counts.patches == 6


def test_encoder_reads_the_frames_of_the_teacher(make, config, still):
    """Bare clips: frames are stretched to the tower's square and cropped to whole patches."""
    config.model.patch_embed = "encoder"
    config.teacher.update(image_size=36, patch_size=16)
    made = make(36).prepare(
        Example("x", (still, still), (Turn("Between <image> and <video>?", "Nothing."),)),
        np.random.default_rng(0),
    )
    assert made.layout.kind.tolist().count(Kind.PATCH) == made.counts.patches == 2 * 4
    assert not {Kind.FRAME, Kind.LINE} & set(made.layout.kind.tolist())
    assert made.counts.frames == 2
    seen = made.patches.reshape(2, 2, 2, 16, 16, 3).swapaxes(2, 3).reshape(2, 32, 32, 3)
    np.testing.assert_array_equal(seen, made.teacher_frames[36][:, :32, :32])


def test_conversation_without_media_is_decoded(make):
    made = make(20).prepare(Example("x", (), TURNS[:1]), np.random.default_rng(0))
    assert (made.counts.patches, made.patches.shape, made.teacher_frames[20].shape) == (
        0,
        (0, 768),
        (0, 20, 20, 3),
    )


def test_every_failure_becomes_a_rejected_record(make, tmp_path):
    decoder = make()

    class Broken:
        def __init__(self, error):
            self.error = error

        def key(self, *position):
            return "a[3]"

        def example(self, *position):
            raise self.error

    decoder.mixture = Broken(OSError("disk gone"))
    assert decoder((0, 3), np.random.default_rng(0)) == Rejected("a[3]", "OSError: disk gone")
    missing = Example("y", (Media(str(tmp_path / "no.mp4"), "video"),), TURNS)
    decoder.mixture.example = lambda *position: missing
    rejected = decoder((0, 3), np.random.default_rng(0))
    assert rejected.key == "y"
    assert "no such file" in rejected.reason
    assert str(tmp_path) not in rejected.reason


def test_caption_without_media_is_refused(config, tokenizer):
    decoder = CaptionDecoder(Mixture(config, "teacher"), config, config.stages.teacher, tokenizer)
    with pytest.raises(RecordError, match=r"^words: has no video or image for the caption$"):
        decoder.prepare(Example("words", (), TURNS), np.random.default_rng(0))
