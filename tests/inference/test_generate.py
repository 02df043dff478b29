"""Cached, batched, bucketed inference equals the plain forward pass over the whole conversation."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from elva_jax.errors import ElvaError
from elva_jax.inference import prefill as prefill_module
from elva_jax.inference.generate import Choice, Generator
from elva_jax.inference.rows import build_rows
from elva_jax.inference.visual import keep_frames
from elva_jax.video.decode import Frames
from elva_jax.video.layout import Kind

QUESTION = "What colour is the circle?"
OPTIONS = ("red", "a green square at the top left", "4")


def media(generator, frames):
    return (generator.load(frames),)


def option_ids(generator, option):
    return generator.tokenizer.encode(option + "<|im_end|>", add_special_tokens=False)


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_option_scores_equal_the_whole_forward(generator, videos, whole_forward, merging, index):
    shown = media(generator, videos[index])
    prefilled = generator.prefill([shown], merging=merging)
    (row,) = generator.score_options(prefilled, [[Choice(QUESTION, OPTIONS)]])
    for option, score in zip(OPTIONS, row[0], strict=True):
        ids = option_ids(generator, option)
        log_probs, _ = whole_forward(shown, QUESTION, ids, merging)
        expected = log_probs[np.arange(len(ids)), ids].sum()
        assert score.tokens == len(ids)
        assert score.total == pytest.approx(expected, rel=1e-5)
        assert score.mean == score.total / len(ids)


@pytest.mark.parametrize("merging", [False, True])
def test_decoding_equals_the_whole_forward_step_by_step(generator, videos, whole_forward, merging):
    """Every token is the argmax of a forward pass over everything before it."""
    shown = [media(generator, frames) for frames in videos[:3]]
    answers = generator.generate(generator.prefill(shown, merging=merging), [[QUESTION], [QUESTION], [QUESTION]], 6)
    seen = set()
    for clip, (answer,) in zip(shown, answers, strict=True):
        ids = list(answer.tokens) + ([generator.end_ids[-1]] if answer.finished else [])
        log_probs, _ = whole_forward(clip, QUESTION, ids, merging)
        assert log_probs[:, : len(generator.tokenizer)].argmax(-1).tolist() == ids
        seen.update(ids)
    assert len(seen) > 3, "weights too weak to tell tokens apart: the comparison would prove little"


def test_merging_keeps_the_tokens_that_training_keeps(generator, videos, whole_forward):
    shown = [media(generator, frames) for frames in videos[:3]]
    prefilled = generator.prefill(shown)
    ids = option_ids(generator, "red")
    for row, clip in enumerate(shown):
        _, out = whole_forward(clip, QUESTION, ids, True)
        text_after = int((out.survivor[0] >= 0).sum()) - prefilled.front_tokens[row]
        assert prefilled.prefix.tokens[-1][row] == int((out.layout.kind[0] != Kind.PAD).sum()) - text_after
    entering, first, last = prefilled.prefix.tokens[:, 1]
    assert first == entering - 3 * 16, "a still picture keeps one frame's patches"
    assert last == first
    assert prefilled.prefix.tokens[1][0] > prefilled.prefix.tokens[1][1]
    assert prefilled.prefix.segments[1].k.shape[2] < prefilled.prefix.segments[0].k.shape[2] or len(shown) > 1


def test_redundant_video_takes_a_smaller_program(generator, videos):
    lengths = [seg.k.shape[2] for seg in generator.prefill([media(generator, videos[1])]).prefix.segments]
    noisy = [seg.k.shape[2] for seg in generator.prefill([media(generator, videos[0])]).prefix.segments]
    assert lengths[0] == noisy[0]
    assert lengths[1] < noisy[1]
    plain = generator.prefill([media(generator, videos[1])], merging=False).prefix.segments
    assert [seg.k.shape[0] for seg in plain] == [4]


@pytest.mark.parametrize("merging", [False, True])
def test_batch_equals_single(generator, videos, merging):
    questions = [[QUESTION, "How many?"], ["Which shape moves to the left, and where does it stop?"], [], ["Where?", QUESTION, "Which?"]]
    choices = [[Choice(question, OPTIONS[: 1 + len(question) % 3]) for question in row] for row in questions]
    shown = [media(generator, frames) for frames in videos]
    together = generator.prefill(shown, merging=merging)
    scores, answers = generator.score_options(together, choices), generator.generate(together, questions, 5)
    for b, clip in enumerate(shown):
        alone = generator.prefill([clip], merging=merging)
        for g, question in enumerate(questions[b]):
            assert generator.generate(alone, [[question]], 5)[0][0] == answers[b][g]
            (expected,) = generator.score_options(alone, [[choices[b][g]]])[0]
            np.testing.assert_allclose([s.total for s in scores[b][g]], [s.total for s in expected], rtol=1e-5, atol=1e-5)
    assert [len(row) for row in answers] == [len(row) for row in questions]


def test_padding_and_bucket_do_not_change_scores(generator, videos, monkeypatch):
    """The same row at its tightest lengths and at four times the grid's lengths."""
    clip = media(generator, videos[2])
    choice = [[Choice(QUESTION, OPTIONS)]]
    reference = [s.total for s in generator.score_options(generator.prefill([clip]), choice)[0][0]]

    def padded(fronts, patches, width):
        rows = build_rows(fronts, patches, width)
        grow = [(0, 0), (0, 3 * rows.layout.length)]
        fill = dict.fromkeys(("patch_index", "frame", "row", "tube", "cell"), -1)
        layout = type(rows.layout)(
            **{
                name: np.pad(field, grow + [(0, 0)] * (field.ndim - 2), constant_values=fill.get(name, 0))
                for name, field in rows.layout._asdict().items()
            }
        )
        return rows._replace(layout=layout)

    for lengths, rows in ((lambda n, smallest=16: n, build_rows), (lambda n, smallest=16: 4 * n, padded)):
        monkeypatch.setattr(prefill_module, "grid_length", lengths)
        monkeypatch.setattr("elva_jax.inference.generate.build_rows", rows)
        scores = [s.total for s in generator.score_options(generator.prefill([clip]), choice)[0][0]]
        np.testing.assert_allclose(scores, reference, rtol=1e-5, atol=1e-5)


def test_options_do_not_see_one_another(generator, videos):
    prefilled = generator.prefill([media(generator, videos[0])])
    many = generator.score_options(prefilled, [[Choice(QUESTION, OPTIONS)]])[0][0]
    for option, score in zip(OPTIONS, many, strict=True):
        alone = generator.score_options(prefilled, [[Choice(QUESTION, (option,))]])[0][0][0]
        assert score.total == pytest.approx(alone.total, rel=1e-5)


def test_generation_stops_at_the_end_token_and_at_the_limit(generator, videos):
    prefilled = generator.prefill([media(generator, videos[0])])
    ((free,),) = generator.generate(prefilled, [[QUESTION]], 6)
    assert len(free.tokens) == 6
    assert not free.finished
    third = free.tokens[2]
    stopping = Generator(generator.config, generator.params, generator.tokenizer)
    stopping.end_ids = (third,)
    ((stopped,),) = stopping.generate(prefilled, [[QUESTION]], 6)
    assert stopped.finished
    assert stopped.tokens == free.tokens[: free.tokens.index(third)]
    ((short,),) = generator.generate(prefilled, [[QUESTION]], 2)
    assert short.tokens == free.tokens[:2]


def test_answer_and_score_take_frames_and_files(generator, videos, tmp_path):
    from PIL import Image

    frames = videos[0]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    as_frames = Frames(frames, np.arange(4.0), 4.0)
    expected = generator.answer(frames, QUESTION, 4)
    assert isinstance(expected, str)
    assert generator.answer(tmp_path, QUESTION, 4) == generator.answer(as_frames, QUESTION, 4) == expected
    scores = generator.score(tmp_path, QUESTION, OPTIONS)
    assert scores == generator.score(frames, QUESTION, OPTIONS)
    assert generator.load(tmp_path, num_frames=2).clip.grids == ((4, 4),) * 2
    assert generator.answer(None, QUESTION, 4) != ""


def test_marker_places_the_video(generator, videos):
    clip = media(generator, videos[3])
    question = "Look here: <video> What is it?"
    prefilled = generator.prefill([clip], prompts=[question])
    assert generator.generate(prefilled, [[question]], 3)[0][0].text == generator.answer(videos[3], question, 3)
    with pytest.raises(ElvaError, match="places its media unlike"):
        generator.generate(prefilled, [["What is it?"]], 3)


def test_keep_frames_is_the_video_of_those_frames(generator, videos):
    frames = [videos[2][0], videos[0][1], videos[2][3]]
    kept = keep_frames(generator.load(frames), [2, 0])
    expected = generator.load([frames[2], frames[0]])
    assert kept.clip == expected.clip
    np.testing.assert_array_equal(kept.patches, expected.patches)


def test_few_programs_for_many_lengths(generator, tokenizer, videos):
    """Questions of every length and answers of every limit share the programs of a small grid."""
    from elva_jax.inference import extend

    prefilled = generator.prefill([media(generator, videos[3])])
    before = extend.branch_scores._cache_size()
    for n in range(1, 40, 3):
        generator.score_options(prefilled, [[Choice("what " * n + "?", ("red",))]])
    assert extend.branch_scores._cache_size() - before <= 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, v: g.answer([], QUESTION), "has no frames"),
        (lambda g, v: g.answer([np.zeros((8, 8), np.uint8)], QUESTION), "uint8 array"),
        (lambda g, v: g.answer("missing.mp4", QUESTION), "missing.mp4"),
        (lambda g, v: g.answer(v, "  "), "prompt is empty"),
        (lambda g, v: g.answer(v, "<video> "), "prompt is empty"),
        (lambda g, v: g.answer(v, "<video> and <video>?"), "2 <image> or <video> markers for 1 media"),
        (lambda g, v: g.answer(v, "colour " * 300), "256"),
        (lambda g, v: g.answer(v * 5, QUESTION), "256.*fewer frames"),
        (lambda g, v: g.answer(v, QUESTION, max_new_tokens=0), "max_new_tokens=0"),
        (lambda g, v: g.score(v, QUESTION, []), "needs options"),
        (lambda g, v: g.score(v, QUESTION, ["red", " "]), "none of them empty"),
        (lambda g, v: g.score(v, QUESTION, ["red " * 300]), "256"),
        (lambda g, v: g.prefill([]), "no rows"),
    ],
)
def test_errors_are_one_clear_line(generator, videos, call, message):
    with pytest.raises(ElvaError, match=message) as error:
        call(generator, videos[0])
    assert "\n" not in str(error.value)


def test_an_answer_ends_at_the_longest_sequence(config, params, tokenizer, videos):
    generator = Generator(config, params, tokenizer)
    prefilled = generator.prefill([media(generator, videos[0])])
    room = 9
    used = prefilled.front_tokens[0] + len(generator._question(prefilled, 0, QUESTION))
    decoder = dataclasses.replace(generator.model.decoder, max_position=used + room)
    generator.model = dataclasses.replace(generator.model, decoder=decoder)
    generator.end_ids = (-5,)
    ((answer,),) = generator.generate(prefilled, [[QUESTION]], 50)
    assert len(answer.tokens) == room


def test_a_run_without_elva_stage_is_refused(config, params, tokenizer):
    other = config.copy_and_resolve_references()
    other.curriculum = ("teacher",)
    with pytest.raises(ElvaError, match="no stage of kind 'elva'"):
        Generator(other, params, tokenizer)
    assert Generator(config, params, tokenizer).stage == "video"


def test_inference_needs_neither_grain_nor_tfds():
    code = "import sys, elva_jax.inference.generate; sys.exit(int(any(m in sys.modules for m in ('grain', 'tensorflow_datasets'))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bfloat16_answers_close_to_float32(config, params, tokenizer, generator, videos):
    half = config.copy_and_resolve_references()
    half.model.dtype = "bfloat16"
    scores = [g.score(videos[1], QUESTION, OPTIONS)[0].mean for g in (Generator(half, params, tokenizer), generator)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1)
    assert jax.numpy.isfinite(scores[0])
