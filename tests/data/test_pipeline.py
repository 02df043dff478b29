"""Tests of batches: order, exact resumption, bad records, contents of rows, teacher frames."""

import json
from collections import Counter

import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.data import mixture, sources
from elva_jax.data.batches import caption_batches, conversation_batches, conversations_per_step
from elva_jax.data.iterator_state import redistribute
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.errors import DataError
from elva_jax.video.layout import Kind


@pytest.fixture
def make(config, tokenizer):
    """Creates iterators of the video stage, and closes them at the end."""
    made = []

    def make(**options):
        made.append(conversation_batches(config, "video", tokenizer, **options))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def take(batches, n):
    return [next(batches) for _ in range(n)]


def leaves(batch):
    return (
        [*batch["layout"], *(batch[key] for key in sorted(batch) if key != "layout")]
        if "layout" in batch
        else list(batch.values())
    )


def equal(left, right):
    pairs = [
        pair
        for one, two in zip(left, right, strict=True)
        for pair in zip(leaves(one), leaves(two), strict=True)
    ]
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def answers(batch, tokenizer):
    """The learned text of every segment of every row, split at <|im_end|>."""
    layout, out = batch["layout"], []
    for r in range(len(layout.kind)):
        for k in range(1, layout.segment[r].max() + 1):
            learned = (layout.segment[r] == k) & (layout.loss_weight[r] > 0)
            out.append(tokenizer.decode(layout.target[r][learned]).split("<|im_end|>")[:-1])
    return out


def test_seed_determines_every_byte(make, config):
    first = take(make(), 5)
    assert equal(first, take(make(), 5))
    config.seed = 1
    assert not equal(first, take(make(), 5))


def test_resumed_iterator_gives_identical_batches(make):
    whole = make()
    states, batches, stats = [], [], []
    for _ in range(8):
        states.append(json.loads(json.dumps(whole.get_state())))
        batches.append(next(whole))
        stats.append(whole.stats)
    assert any(state["waiting"] for state in states)
    for k in (0, 1, 5):
        again = make()
        again.set_state(states[k])
        for j in range(k, 8):
            assert again.get_state() == states[j]
            assert equal([next(again)], [batches[j]])
            assert again.stats == stats[j]


def test_iterator_can_return_to_an_earlier_state(make):
    batches = make()
    take(batches, 2)
    state = batches.get_state()
    first = take(batches, 3)
    batches.set_state(state)
    assert equal(first, take(batches, 3))


def test_number_of_workers_does_not_change_batches(make, config):
    config.stages.video.data.update(num_low_frames=2, low_longest_edge=16)
    config.stages.video.data.mixture.a.split = "rotten"
    config.stages.video.data.max_bad_fraction = 1.0
    alone = make()
    expected = take(alone, 6)
    config.stages.video.data.workers = 2
    helped = make()
    assert equal(take(helped, 3), expected[:3])
    state = helped.get_state()
    config.stages.video.data.workers = 1
    other = make()
    other.set_state(state)
    assert equal(take(other, 3), expected[3:])
    assert other.get_state() == alone.get_state()


def frames_of_examples(batch):
    """The patch grids of every packed example."""
    layout, out = batch["layout"], []
    for r in range(len(layout.kind)):
        for k in range(1, layout.segment[r].max() + 1):
            patch = (layout.segment[r] == k) & (layout.kind[r] == Kind.PATCH)
            first = np.unique(layout.frame[r][patch], return_index=True)[1]
            out.append([tuple(cell) for cell in layout.cell[r][patch][first][:, 2:].tolist()])
    return out


def test_some_videos_are_read_at_two_resolutions(make, config):
    """Clips have three frames of 32 x 32 or 32 x 48 pixels; hybrid ones two more of one patch."""
    data = config.stages.video.data
    plain = take(make(), 2)
    data.low_longest_edge = 16
    assert equal(take(make(), 2), plain)
    data.num_low_frames = 2
    mixed = [grids for batch in take(make(), 5) for grids in frames_of_examples(batch)]
    hybrid = [grids for grids in mixed if (1, 1) in grids]
    videos = [grids for grids in mixed if len(grids) > 1]
    assert {tuple(grids) for grids in mixed if grids not in hybrid} == {
        ((2, 2),) * 3,
        ((2, 3),) * 3,
        ((3, 2),),
    }
    assert {tuple(grids) for grids in hybrid} == {
        ((2, n), (1, 1), (2, n), (1, 1), (2, n)) for n in (2, 3)
    }
    assert 0.3 < len(hybrid) / len(videos) < 0.7
    for probability, share in ((0.0, 0), (1.0, 1)):
        data.hybrid_probability = probability
        seen = [
            grids
            for batch in take(make(), 1)
            for grids in frames_of_examples(batch)
            if len(grids) > 1
        ]
        assert np.mean([(1, 1) in grids for grids in seen]) == share


def test_choice_of_hybrid_videos_depends_only_on_the_seed(make, config):
    config.stages.video.data.update(num_low_frames=2, low_longest_edge=16, pack=False)
    first = [frames_of_examples(batch) for batch in take(make(), 4)]
    state = make().get_state()
    config.stages.video.batch_size = 8
    assert [frames_of_examples(batch) for batch in take(make(), 2)] == [
        a + b for a, b in zip(first[::2], first[1::2], strict=True)
    ]
    config.stages.video.batch_size, config.seed = 4, 1
    assert [frames_of_examples(batch) for batch in take(make(), 4)] != first
    config.seed, config.stages.video.data.hybrid_probability = 0, 0.25
    with pytest.raises(
        DataError,
        match=r"hybrid was \[2, 16, 'interleave', 0\.5\] .* is \[2, 16, 'interleave', 0\.25\]",
    ):
        make().set_state(state)


def test_hybrid_videos_that_do_not_fit_are_dropped_with_a_reason(make, config):
    config.stages.video.data.update(
        num_low_frames=2,
        low_longest_edge=16,
        hybrid_probability=1.0,
        max_frames=4,
        max_bad_fraction=1.0,
    )
    batches = make()
    next(batches)
    assert set(batches.reasons) == {"one example exceeds the row's frames"}


def test_states_of_another_run_are_refused(make, config):
    state = make().get_state()
    with pytest.raises(DataError, match=r"process_count was 1 .* is 2 now"):
        make(process_index=0, process_count=2).set_state(state)
    config.stages.video.data.mixture.a.split = "other"
    with pytest.raises(DataError, match=r"mixture was .*24.* is .*8"):
        make().set_state(state)
    with pytest.raises(
        DataError, match=r"batch_size = 4 is not divisible by the number of processes, 3"
    ):
        make(process_index=0, process_count=3)


def test_processes_read_disjoint_records(make, config, tokenizer):
    config.stages.video.data.mixture.a.tasks, config.stages.video.data.pack = ("object",), False
    seen = []
    for index in range(2):
        taken = take(make(process_index=index, process_count=2), 6)
        assert taken[0]["patches"].shape[0] == 2
        seen += [answer for batch in taken for (answer,) in answers(batch, tokenizer)]
    assert sorted(seen) == sorted(f"a circle, place {k}" for k in range(24))


def test_another_number_of_processes_reads_the_same_remaining_samples(make, config, tokenizer):
    """One process reads a third of an epoch, two read the rest; random turns are unchanged."""
    config.stages.video.data.pack = False
    alone = [tuple(turns) for batch in take(make(), 6) for turns in answers(batch, tokenizer)]
    first = make()
    taken = [tuple(turns) for batch in take(first, 2) for turns in answers(batch, tokenizer)]
    state = json.loads(json.dumps(first.get_state()))
    for index in range(2):
        other = make(process_index=index, process_count=2)
        other.set_state(redistribute([state], index, 2))
        taken += [tuple(turns) for batch in take(other, 4) for turns in answers(batch, tokenizer)]
    assert Counter(taken) == Counter(alone)
    assert len(alone) == len(taken) == 24


def test_bad_records_are_counted_exactly(make, config):
    config.stages.video.data.mixture.a.split = "rotten"
    config.stages.video.data.max_bad_fraction = 1.0
    batches = make()
    take(batches, 12)
    seen = batches.get_state()["position"]
    order = mixture.stream([29], [1.0], mixture.stage_seed(config.seed, "video"))
    # The last five records are bad for different reasons.
    bad = Counter(order[k][1] - 24 for k in range(seen) if order[k][1] >= 24)
    assert seen == batches.seen > 2 * 29
    assert batches.dropped == sum(bad.values())
    assert sorted(batches.reasons.values()) == sorted(bad.values())
    for kind, words in enumerate(
        (
            "not a",
            "0 bytes",
            "malformed annotation",
            "conversation is empty",
            "a question has no answer",
        )
    ):
        assert [n for reason, n in batches.reasons.items() if words in reason] == [bad[kind]], words
    resumed = make()
    resumed.set_state(batches.get_state())
    assert (resumed.dropped, resumed.reasons) == (batches.dropped, batches.reasons)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_of_a_file_are_counted_by_reason(make, config, data_dir, tmp_path, workers):
    """A LLaVA file with twelve good records, and a bad one for every possible reason."""

    def line(video="good.mp4", question="<video>What colour?", answer="red"):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return json.dumps({"video": video, "conversations": turns}).encode()

    (tmp_path / "root").mkdir()
    good = (
        sources.to_example(sources.open_source("moving_shapes/small", "train", data_dir)[0])
        .media[0]
        .source
    )
    for path in ("root/good.mp4", "secret.mp4"):
        (tmp_path / path).write_bytes(good)
    (tmp_path / "root" / "empty.mp4").touch()
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    bad = {
        "no such file or folder": [line("none.mp4")],
        "is empty (0 bytes)": [line("empty.mp4")],
        "a media path leaves the root folder": [
            line("../secret.mp4"),
            line(str(tmp_path / "secret.mp4")),
            line("link.mp4"),
        ],
        "a question has no answer": [line(answer="")],
        "the conversation is empty": [b'{"video": "good.mp4", "conversations": []}'],
        "is not UTF-8 text": [line(answer="caf\xe9").replace(b"\\u00e9", b"\xe9")],
        "is not JSON (Expecting ',' delimiter)": [line()[:-3]],
        "is not a JSON object": [b"3"],
        "2 <image> or <video> markers for 1 media; write \\<video> where the word is meant": [
            line(question="<video><video>What?")
        ],
    }
    (tmp_path / "notes.jsonl").write_bytes(
        b"\n".join([line()] * 12 + [text for texts in bad.values() for text in texts])
    )
    data = config.stages.video.data
    data.mixture = {
        "mine": schema.source(str(tmp_path / "notes.jsonl"), root=str(tmp_path / "root"))
    }
    data.max_bad_fraction, data.workers = 1.0, workers
    batches = make()
    take(batches, 8)
    reasons = [None] * 12 + [reason for reason, texts in bad.items() for _ in texts]
    order = mixture.stream([len(reasons)], [1.0], mixture.stage_seed(config.seed, "video"))
    expected = Counter(reasons[order[k][1]] for k in range(batches.seen))
    assert batches.seen > 2 * len(reasons)
    del expected[None]
    assert batches.reasons == expected


@pytest.mark.parametrize(("limit", "dropped"), [(0.0, 1), (0.1, 11)])
def test_too_many_bad_records_stop_the_run(make, config, limit, dropped):
    config.stages.video.data.mixture.a.split = "rotten"
    config.stages.video.data.max_bad_fraction = limit
    batches = make()
    with pytest.raises(
        DataError,
        match=rf"^{dropped} of \d+ records are bad, "
        rf"over the limit data.max_bad_fraction = {limit}: .*first: bad\d",
    ):
        take(batches, 100)


def test_rows_contain_the_frames_of_their_text(make, config, tokenizer):
    """The answer names record k; its frames f = 1, 3, 5 have gray levels (5 k + 20 f) mod 250."""
    config.stages.video.data.mixture.a.tasks = ("object",)
    batches, records = make(teacher=TeacherFrames(sizes=(24,))), set()
    for batch in take(batches, 4):
        layout = batch["layout"]
        names = iter(answers(batch, tokenizer))
        for r in range(4):
            for segment in range(1, layout.segment[r].max() + 1):
                k = int(next(names)[0].split("place ")[1])
                records.add(k)
                expected = (
                    [k * 5 % 250] if k % 4 == 3 else [(k * 5 + f * 20) % 250 for f in (1, 3, 5)]
                )
                frames = np.unique(
                    layout.frame[r][(layout.segment[r] == segment) & (layout.frame[r] >= 0)]
                )
                for frame, brightness in zip(frames, expected, strict=True):
                    index = layout.patch_index[r][
                        (layout.frame[r] == frame) & (layout.kind[r] == Kind.PATCH)
                    ]
                    # Patches of 32 x 48, 48 x 32 or 32 x 32 pixels.
                    assert len(index) == (6 if k % 2 else 4)
                    np.testing.assert_allclose(batch["patches"][r][index], brightness, atol=4)
                    np.testing.assert_allclose(
                        batch["teacher_frames"][24][r][frame], brightness, atol=4
                    )
    assert records == set(range(24))


def test_batches_have_fixed_shapes_and_report_their_fill(make, tokenizer):
    batches = make()
    first = next(batches)
    batch = next(batches)
    layout = batch["layout"]
    assert first["patches"].shape == batch["patches"].shape == (4, 40, 16 * 16 * 3)
    assert first["patches"].dtype == np.uint8
    assert layout.kind.shape == (4, 256)
    assert set(batch) == {"patches", "layout"}
    assert batches.stats["token_fill"] == (layout.kind != Kind.PAD).mean()
    assert batches.stats["patch_fill"] == (layout.kind == Kind.PATCH).sum() / (4 * 40)
    assert batches.stats["examples"] == layout.segment.max(axis=1).sum() > 4
    assert max(len(turns) for turns in answers(batch, tokenizer)) == 3
    assert [len(np.unique(layout.segment[r])) for r in range(4)] == list(
        layout.segment.max(axis=1) + 1
    )


def test_packing_neither_loses_nor_repeats_examples(make, config, tokenizer):
    config.stages.video.data.mixture.a.tasks = ("object",)
    batches = make()
    names = [answer for batch in take(batches, 12) for (answer,) in answers(batch, tokenizer)]
    state = batches.get_state()
    order = mixture.stream([24], [1.0], mixture.stage_seed(config.seed, "video"))
    read = Counter(
        f"a circle, place {order[p][1]}"
        for p in range(state["position"])
        if [0, p] not in state["waiting"]
    )
    assert Counter(names) == read


def test_unpacked_rows_have_one_example(make, config):
    config.stages.video.data.pack = False
    batches = make()
    layout = take(batches, 3)[-1]["layout"]
    assert layout.segment.max(axis=1).tolist() == [1] * 4
    state = batches.get_state()
    assert (state["position"], state["waiting"]) == (12, [])


def test_turns_vary_from_epoch_to_epoch(make, config, tokenizer):
    data = config.stages.video.data
    data.mixture.a.split, data.max_turns, data.pack = "train[:4]", 2, False
    epochs = [sorted(map(tuple, answers(batch, tokenizer))) for batch in take(make(), 4)]
    assert len(set(map(tuple, epochs))) > 1
    assert all(len(turns) == 2 for epoch in epochs for turns in epoch)


def test_long_examples_lose_their_last_turns(make, config, tokenizer):
    data = config.stages.video.data
    data.max_turns, data.seq_len = 6, 400
    full = [len(turns) for batch in take(make(), 3) for turns in answers(batch, tokenizer)]
    data.seq_len = 150
    batches = make()
    cut = [len(turns) for batch in take(batches, 3) for turns in answers(batch, tokenizer)]
    assert set(full) == {4}  # six turns; two pairs of them are about the same question
    assert 1 <= min(cut) < 4
    assert batches.dropped == 0


@pytest.mark.parametrize(
    ("key", "value", "budget"),
    [("seq_len", 30, "tokens and merged_tokens"), ("max_patches", 3, "patches")],
)
def test_examples_that_never_fit_are_dropped_and_the_limit_is_named(
    make, config, key, value, budget
):
    config.stages.video.data[key] = value
    with pytest.raises(
        DataError, match=f"6 of 6 records are bad, .*: 6 x one example exceeds the row's {budget} "
    ):
        next(make())


def test_only_examples_that_do_not_fit_are_dropped(make, config):
    """Still images have one frame, clips have three."""
    config.stages.video.data.max_frames, config.stages.video.data.max_bad_fraction = 2, 1.0
    batches = make()
    layout = next(batches)["layout"]
    assert set(batches.reasons) == {"one example exceeds the row's frames"}
    order = mixture.stream([24], [1.0], mixture.stage_seed(config.seed, "video"))
    assert batches.dropped == sum(order[p][1] % 4 != 3 for p in range(batches.seen))
    assert layout.frame.max() == 1


def test_merge_bucket_limits_the_merged_tokens_of_a_row(make, config):
    stage = config.stages.video
    config.model.merge_layers = (1,)
    stage.merging, stage.merge_buckets = True, (160,)
    batches = make()
    for batch in take(batches, 3):
        layout = batch["layout"]
        for r in range(4):
            used = layout.kind[r] != Kind.PAD
            patch = layout.kind[r] == Kind.PATCH
            tubes = sum(
                len(np.unique(layout.tube[r][patch & (layout.segment[r] == k)]))
                for k in range(1, layout.segment[r].max() + 1)
            )
            assert (used & ~patch).sum() + tubes <= 160
    assert batches.dropped == 0


def test_mixtures_are_drawn_by_weight(make, config, tokenizer):
    data = config.stages.video.data
    data.mixture.a.tasks = ("object",)
    data.mixture.b = schema.source("moving_shapes/small", "other", 3.0, ("caption",))
    data.pack = False
    batches = make()
    seen = [turns[0] for batch in take(batches, 10) for turns in answers(batch, tokenizer)]
    assert sum(answer.startswith("a circle") for answer in seen) == 10
    assert all(answer.endswith("moves.") for answer in seen if not answer.startswith("a circle"))


def test_teacher_batches_are_padded_clips_and_captions(config, tokenizer):
    stage = config.stages.teacher
    stage.data.mixture.a.tasks = ("object",)
    batches = caption_batches(config, "teacher", tokenizer)
    taken = take(batches, 3)
    state = json.loads(json.dumps(batches.get_state()))
    stop = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for batch in taken:
        assert batch["pixels"].shape == (4, 3, 32, 32, 3)
        assert batch["token_ids"].shape == batch["mask"].shape == (4, 24)
        for r in range(4):
            ids = batch["token_ids"][r][batch["mask"][r]]
            assert ids[-1] == stop
            assert np.all(batch["token_ids"][r][~batch["mask"][r]] == stop)
            k = int(tokenizer.decode(ids[:-1]).split("place ")[1])
            expected = [k * 5 % 250] if k % 4 == 3 else [(k * 5 + f * 20) % 250 for f in (1, 3, 5)]
            assert batch["frame_mask"][r].sum() == len(expected)
            np.testing.assert_allclose(
                batch["pixels"][r][batch["frame_mask"][r]].mean((1, 2, 3)), expected, atol=4
            )
            assert not batch["pixels"][r][~batch["frame_mask"][r]].any()
    rest = take(batches, 2)
    batches.set_state(state)
    assert equal(rest, take(batches, 2))
    batches.close()


def test_teacher_captions_end_within_the_text_length(config, tokenizer):
    config.teacher.text_length = 5
    batches = caption_batches(config, "teacher", tokenizer)
    batch = next(batches)
    assert batch["mask"].sum(axis=1).max() == 5
    assert np.all(
        batch["token_ids"][np.arange(4), batch["mask"].sum(axis=1) - 1]
        == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    )
    batches.close()


def test_examples_per_step_is_measured_on_packed_rows(config, tokenizer, make):
    config.stages.video.batch_size = 64
    measured = conversations_per_step(config, "video", tokenizer)  # from 2 x 32 rows
    batches = make()
    taken = []
    for _ in range(6):
        next(batches)
        taken.append(batches.stats["examples"])
    # The tolerance covers the variation of 64 rows with about two examples each.
    assert measured == pytest.approx(np.mean(taken), rel=0.15)
    config.stages.video.data.pack = False
    assert conversations_per_step(config, "video", tokenizer) == 64


def test_missing_data_set_says_how_to_build_it(make, config, tmp_path):
    config.data_dir = str(tmp_path)
    with pytest.raises(
        DataError,
        match=rf"{tmp_path}/moving_shapes/small: no such data set; "
        "build it with `elva data build moving_shapes`",
    ):
        make()


def test_missing_splits_are_named(make, config):
    config.stages.video.data.mixture.a.split = "trian"
    with pytest.raises(DataError, match=r"no split 'trian'; it has other, rotten, train"):
        make()


def test_unknown_formats_are_named(make, config):
    config.stages.video.data.mixture.a.name = "webvid/small"
    with pytest.raises(
        DataError,
        match=r"webvid/small: no such data set; "
        "build it with `elva data build SOURCE --name webvid`",
    ):
        make()
