"""Cached, batched, bucketed inference equals the plain forward pass over the whole conversation."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import ElvaError
from elva_jax.inference import kv_cache
from elva_jax.inference import prefill as prefill_module
from elva_jax.inference.batching import grid_length
from elva_jax.inference.model import Generator
from elva_jax.inference.sampling import Sampling
from elva_jax.inference.scoring import Choice
from elva_jax.video.clip import keep_frames
from elva_jax.video.layout import Kind, Text
from elva_jax.video.read import Frames

QUESTION = "What colour is the circle?"
OPTIONS = ("red", "a green square at the top left", "4")
QUESTIONS = [
    QUESTION,
    "How many?",
    "Where is the blue one?",
]  # every batch asks three, so that few programs are compiled
STILL = 1  # the video of the tests that take one alone


def option_ids(generator, option):
    return generator.tokenizer.encode(option + "<|im_end|>", add_special_tokens=False)


def totals(generator, prefilled, question=QUESTION, options=OPTIONS):
    return [
        score.total
        for score in generator.score_options(prefilled, [[Choice(question, options)]])[0][0]
    ]


@pytest.mark.parametrize("merging", [False, True])
def test_option_scores_equal_the_whole_forward(generator, shown, batch, whole_forward, merging):
    """Each option by a forward pass of its own over the whole conversation, without cache, batch or other options."""
    rows = generator.score_options(
        batch[merging], [[Choice(question, OPTIONS) for question in QUESTIONS]] * 4
    )
    for media, (scores, *_) in zip(shown, rows, strict=True):
        for option, score in zip(OPTIONS, scores, strict=True):
            ids = option_ids(generator, option)
            log_probs, _ = whole_forward(media, QUESTION, ids, merging)
            expected = log_probs[np.arange(len(ids)), ids].sum()
            assert score.tokens == len(ids)
            assert score.total == pytest.approx(expected, rel=1e-5)
            assert score.mean == score.total / len(ids)
    assert len({round(scores[0].total, 3) for scores, *_ in rows}) == 4, (
        "the video does not matter: the comparison would prove little"
    )


def test_decoding_equals_the_whole_forward_step_by_step(generator, shown, batch, whole_forward):
    """Every token is the argmax of a forward pass over everything before it."""
    answers = generator.generate(batch[True], [QUESTIONS] * 4, 6)
    seen = set()
    for media, (answer, *_) in zip(shown, answers, strict=True):
        ids = list(answer.tokens) + ([generator.end_ids[-1]] if answer.finished else [])
        log_probs, _ = whole_forward(media, QUESTION, ids, True)
        assert log_probs[:, : len(generator.tokenizer)].argmax(-1).tolist() == ids
        seen.update(ids)
    assert len(seen) > 3, "weights too weak to tell tokens apart: the comparison would prove little"


def test_merging_keeps_the_tokens_that_training_keeps(generator, shown, batch, whole_forward):
    ids = option_ids(generator, "red")
    for row, media in enumerate(shown):
        _, out = whole_forward(media, QUESTION, ids, True)
        text_behind = int((out.survivor[0] >= 0).sum()) - batch[True].front_tokens[row]
        assert (
            batch[True].prefix.tokens[-1][row]
            == int((out.layout.kind[0] != Kind.PAD).sum()) - text_behind
        )
    entering, first, second = batch[True].prefix.tokens
    assert first[STILL] == second[STILL] == entering[STILL] - 3 * 16, (
        "a still video keeps one frame's patches"
    )
    assert entering[STILL] // 2 < second[0] < first[0], (
        "noise keeps more, until the second layer's ratio"
    )
    assert second[3] == first[3] == entering[3], "one frame has nothing to merge with"


@pytest.fixture(scope="module")
def alone(generator, shown):
    """The still video, prefilled by itself."""
    return generator.prefill([shown[STILL]])


def test_redundant_video_takes_smaller_programs(alone, batch):
    lengths, together = (
        [layer.k.shape[2] for layer in p.prefix.layers] for p in (alone, batch[True])
    )
    assert lengths == [grid_length(int(tokens)) for tokens in alone.prefix.tokens[:, 0]]
    assert lengths[1] < 0.8 * lengths[0]
    assert lengths[1] < together[1]
    assert [piece[:2] for piece in alone.prefix.segments] == [(0, 1), (1, 2), (2, 3)]
    assert [piece[:2] for piece in batch[False].prefix.segments] == [(0, 3)]


def test_batch_equals_single(generator, alone, batch):
    """Rows with other videos, other questions or none, other buckets and other padding change nothing for a row."""
    questions = [["Where?"], QUESTIONS, [], ["Which?", QUESTION]]
    choices = [[Choice(question, OPTIONS) for question in row] for row in questions]
    scores, answers = (
        generator.score_options(batch[True], choices),
        generator.generate(batch[True], questions, 6),
    )
    assert [len(row) for row in answers] == [len(row) for row in scores] == [1, 3, 0, 2]
    for question, score, answer in zip(QUESTIONS, scores[STILL], answers[STILL], strict=True):
        assert generator.generate(alone, [[question]], 6)[0][0] == answer
        np.testing.assert_allclose(
            [s.total for s in score], totals(generator, alone, question), rtol=1e-5
        )


def test_generation_stops_at_the_end_token_and_at_the_limit(
    config, params, tokenizer, generator, alone
):
    ((free,),) = generator.generate(alone, [[QUESTION]], 6)
    assert len(free.tokens) == 6
    assert not free.finished
    stopping = Generator(config, params, tokenizer)
    stopping.end_ids = (free.tokens[3],)
    ((stopped,),) = stopping.generate(alone, [[QUESTION]], 6)
    assert stopped.finished
    assert stopped.tokens == free.tokens[: free.tokens.index(free.tokens[3])]
    ((short,),) = generator.generate(alone, [[QUESTION]], 2)
    assert short.tokens == free.tokens[:2]


def test_an_answer_ends_at_the_longest_sequence(generator, shown, batch):
    question = "Where is the blue, where the red?"
    asked = len(generator.prompt_parts(question, shown[0])[-1].token_ids)
    room = generator.model.decoder.max_position - batch[True].front_tokens[0] - asked
    assert 0 < room <= 8
    answer = generator.generate(batch[True], [[question, *QUESTIONS[1:]], [], [], []], 50)[0][0]
    assert answer.finished or len(answer.tokens) == room


def test_answer_and_score_take_frames_and_files(generator, videos, tmp_path):
    frames = videos[STILL]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    expected = generator.answer(frames, QUESTION, 6)
    assert isinstance(expected, str)
    assert (
        generator.answer(tmp_path, QUESTION, 6)
        == generator.answer(Frames(frames, np.arange(4.0), 4.0), QUESTION, 6)
        == expected
    )
    assert generator.score(tmp_path, QUESTION, OPTIONS) == generator.score(
        frames, QUESTION, OPTIONS
    )
    assert generator.load(tmp_path, num_frames=2).clip.grids == ((4, 4),) * 2


def test_marker_places_the_video(generator, shown, whole_forward):
    question = "Look here: <video> What is it?"
    prefilled = generator.prefill([shown[3]], prompts=[question], merging=False)
    ids = option_ids(generator, "red")
    log_probs, _ = whole_forward(shown[3], question, ids, False)
    assert totals(generator, prefilled, question, ("red",)) == pytest.approx(
        [log_probs[np.arange(len(ids)), ids].sum()], rel=1e-5
    )
    with pytest.raises(ElvaError, match="places its media unlike"):
        generator.generate(prefilled, [["What is it?"]], 3)


def test_without_video(generator, whole_forward):
    ids = option_ids(generator, "red")
    log_probs, _ = whole_forward((), QUESTION, ids, False)
    (score,) = generator.score(None, QUESTION, ["red"], merging=False)
    assert score.total == pytest.approx(log_probs[np.arange(len(ids)), ids].sum(), rel=1e-5)


def test_keep_frames_is_the_video_of_those_frames(generator, videos):
    frames = [videos[2][0], videos[0][1], videos[2][3]]
    kept = keep_frames(generator.load(frames), [2, 0])
    expected = generator.load([frames[2], frames[0]])
    assert kept.clip == expected.clip
    np.testing.assert_array_equal(kept.patches, expected.patches)


def test_few_programs_for_many_lengths(generator, shown, alone):
    """Questions of four lengths take at most two steps of the grid; a second prefill compiles nothing."""
    before = kv_cache.branch_scores._cache_size(), prefill_module._layer._cache_size()
    for n in range(2, 6):
        totals(generator, alone, "what " * n + "?", ("red",))
    assert kv_cache.branch_scores._cache_size() - before[0] <= 2
    generator.prefill([shown[STILL]])
    assert prefill_module._layer._cache_size() == before[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, v: g.answer([], QUESTION), "has no frames"),
        (lambda g, v: g.answer([np.zeros((8, 8), np.uint8)], QUESTION), "uint8 array"),
        (lambda g, v: g.answer("missing.mp4", QUESTION), "missing.mp4"),
        (lambda g, v: g.answer(v, "  "), "prompt is empty"),
        (lambda g, v: g.answer(v, "<video> "), "prompt is empty"),
        (
            lambda g, v: g.answer(v, "<video> and <video>?"),
            "2 <image> or <video> markers for 1 media",
        ),
        (lambda g, v: g.answer(v, "colour " * 999), "118, 944 with RoPE stretched"),
        (lambda g, v: g.answer(v * 14, QUESTION), "118.*fewer or smaller frames"),
        (lambda g, v: g.generate(g.prefill([(g.load(v),)]), [["colour " * 99]]), "118.*more room"),
        (lambda g, v: g.answer(v, QUESTION, max_new_tokens=0), "max_new_tokens=0"),
        (lambda g, v: g.score(v, QUESTION, []), "needs options"),
        (lambda g, v: g.score(v, QUESTION, ["red", " "]), "none of them empty"),
        (lambda g, v: g.score(v, QUESTION, ["red " * 300]), "118"),
        (lambda g, v: g.prefill([]), "no rows"),
    ],
)
def test_errors_are_one_clear_line(generator, videos, call, message):
    with pytest.raises(ElvaError, match=message) as error:
        call(generator, videos[STILL])
    assert "\n" not in str(error.value)


def test_a_run_without_elva_stage_is_refused(config, params, tokenizer):
    other = config.copy_and_resolve_references()
    other.curriculum = ("teacher",)
    with pytest.raises(ElvaError, match="no stage of kind 'elva'"):
        Generator(other, params, tokenizer)
    with pytest.raises(ElvaError, match="stage 'teacher' trains a teacher"):
        Generator(config, params, tokenizer, "teacher")
    assert Generator(config, params, tokenizer).stage == "video"


def test_inference_needs_neither_grain_nor_tfds():
    code = "import sys, elva_jax.inference.model; sys.exit(int(any(m in sys.modules for m in ('grain', 'tensorflow_datasets'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bfloat16_scores_are_close_to_float32(config, params, tokenizer, shown, whole_forward):
    half = config.copy_and_resolve_references()
    half.model.dtype = "bfloat16"
    generator = Generator(half, params, tokenizer)
    ids = option_ids(generator, "red")
    log_probs, _ = whole_forward(shown[3], QUESTION, ids, False)
    (score,) = totals(generator, generator.prefill([shown[3]], merging=False), options=("red",))
    expected = log_probs[np.arange(len(ids)), ids].sum()
    assert score == pytest.approx(expected, rel=0.05)
    assert score != pytest.approx(expected, rel=1e-6)


def test_streamed_pieces_are_the_answer(generator, alone):
    ((whole,),) = generator.generate(alone, [[QUESTION]], 12)
    pieces = list(generator.stream(alone, QUESTION, 12))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_a_stop_string_ends_the_answer(generator, alone):
    ((free,),) = generator.generate(alone, [[QUESTION]], 12)
    stop = free.text[len(free.text) // 2 :][:3]
    ((stopped,),) = generator.generate(alone, [[QUESTION]], 12, sampling=Sampling(stop=(stop,)))
    assert stopped.finished
    assert stopped.text == free.text[: free.text.index(stop)].rstrip()
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert (
        "".join(generator.stream(alone, QUESTION, 12, sampling=Sampling(stop=(stop,))))
        == stopped.text
    )


def test_a_seed_gives_the_same_answer_in_any_batch(generator, alone, batch):
    hot = Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)
    rows = generator.generate(batch[True], [["Where?"], QUESTIONS, [], ["Which?"]], 8, sampling=hot)
    ((single,),) = generator.generate(alone, [[QUESTIONS[1]]], 8, sampling=hot)
    assert rows[STILL][1] == single
    others = {
        generator.generate(
            alone, [[QUESTIONS[1]]], 8, sampling=dataclasses.replace(hot, seed=seed)
        )[0][0].tokens
        for seed in range(4)
    }
    assert len(others) == 4


def test_the_repetition_penalty_counts_the_whole_conversation(generator, alone, shown):
    ((answer,),) = generator.generate(
        alone, [[QUESTION]], 1, sampling=Sampling(repetition_penalty=50.0)
    )
    prompt = {
        token
        for part in generator.prompt_parts(QUESTION, shown[STILL])
        if isinstance(part, Text)
        for token in part.token_ids
    }
    ((longer,),) = generator.generate(
        alone, [[QUESTION]], 8, sampling=Sampling(repetition_penalty=50.0)
    )
    assert answer.tokens == longer.tokens[:1]
    assert len({*longer.tokens, *prompt}) == len(longer.tokens) + len(prompt), (
        "with so high a penalty nothing comes twice"
    )


class Exactly:
    """Lengths that are not of the grid."""

    def __init__(self, extra):
        self.extra = extra

    def __call__(self, name, tokens, smallest=16):
        return max(tokens, smallest if name == "answer" else 1) + self.extra


def test_logits_do_not_depend_on_buckets(generator, shown):
    """Option scores with other lengths everywhere, behind every merging layer too, agree to 1e-5."""
    scores = [totals_with(generator, shown[2], Exactly(extra)) for extra in (0, 7)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def totals_with(generator, media, lengths):
    prefilled = generator.prefill([media], lengths=lengths)
    return [
        score.total
        for score in generator.score_options(prefilled, [[Choice(QUESTION, OPTIONS)]], lengths)[0][
            0
        ]
    ]
