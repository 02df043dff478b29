"""Tests that cached, batched, bucketed inference equals the forward pass over the conversation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import ElvaError
from elva_jax.inference import prefill as prefill_module
from elva_jax.inference import scoring
from elva_jax.inference.batching import grid_length
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.sampling import Sampling
from elva_jax.inference.scoring import Choice
from elva_jax.video.clip import keep_frames
from elva_jax.video.layout import Kind, Text
from elva_jax.video.read import Frames

QUESTION = "What colour is the circle?"
OPTIONS = ("red", "a green square at the top left", "4")
# Every batch has three questions, so that few programs are compiled.
QUESTIONS = [QUESTION, "How many?", "Where is the blue one?"]
STILL = 1  # the video of tests with a single one


def option_ids(model, option):
    return model.tokenizer.encode(option + "<|im_end|>", add_special_tokens=False)


def totals(prefilled, question=QUESTION, options=OPTIONS):
    return [score.total for score in prefilled.score([[Choice(question, options)]])[0][0]]


@pytest.mark.parametrize("merging", [False, True])
def test_option_scores_equal_the_whole_forward(model, shown, batch, whole_forward, merging):
    """The reference is a forward pass over the conversation with one option, without a cache."""
    rows = batch[merging].score([[Choice(question, OPTIONS) for question in QUESTIONS]] * 4)
    for media, (scores, *_) in zip(shown, rows, strict=True):
        for option, score in zip(OPTIONS, scores, strict=True):
            ids = option_ids(model, option)
            log_probs, _ = whole_forward(media, QUESTION, ids, merging)
            expected = log_probs[np.arange(len(ids)), ids].sum()
            assert score.tokens == len(ids)
            assert score.total == pytest.approx(expected, rel=1e-5)
            assert score.mean == score.total / len(ids)
    assert len({round(scores[0].total, 3) for scores, *_ in rows}) == 4, (
        "the video does not matter: the comparison would prove little"
    )


def test_decoding_equals_the_whole_forward_step_by_step(model, shown, batch, whole_forward):
    """Every token is the argmax of a forward pass over all tokens before it."""
    answers = batch[True].generate([QUESTIONS] * 4, 6)
    seen = set()
    for media, (answer, *_) in zip(shown, answers, strict=True):
        ids = list(answer.tokens) + ([model.engine.end_ids[-1]] if answer.finished else [])
        log_probs, _ = whole_forward(media, QUESTION, ids, True)
        assert log_probs[:, : len(model.tokenizer)].argmax(-1).tolist() == ids
        seen.update(ids)
    assert len(seen) > 3, "weights too weak to tell tokens apart: the comparison would prove little"


def test_merging_keeps_the_tokens_that_training_keeps(model, shown, batch, whole_forward):
    ids = option_ids(model, "red")
    for row, media in enumerate(shown):
        _, out = whole_forward(media, QUESTION, ids, True)
        text_after = int((out.survivor[0] >= 0).sum()) - batch[True].prefix_tokens[row]
        assert (
            batch[True].prefix.tokens[-1][row]
            == int((out.layout.kind[0] != Kind.PAD).sum()) - text_after
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
def alone(model, shown):
    """The still video, prefilled in a batch of one."""
    return model.prefill([shown[STILL]])


def test_redundant_video_takes_smaller_programs(alone, batch):
    lengths, together = (
        [layer.k.shape[2] for layer in p.prefix.layers] for p in (alone, batch[True])
    )
    assert lengths == [grid_length(int(tokens)) for tokens in alone.prefix.tokens[:, 0]]
    assert lengths[1] < 0.8 * lengths[0]
    assert lengths[1] < together[1]
    assert [(block.start, block.stop) for block in alone.prefix.blocks] == [(0, 1), (1, 2), (2, 3)]
    assert [(block.start, block.stop) for block in batch[False].prefix.blocks] == [(0, 3)]


def test_batch_equals_single_rows(model, alone, batch):
    """A row does not depend on other videos, questions, buckets and padding in its batch."""
    questions = [["Where?"], QUESTIONS, [], ["Which?", QUESTION]]
    choices = [[Choice(question, OPTIONS) for question in row] for row in questions]
    scores, answers = (batch[True].score(choices), batch[True].generate(questions, 6))
    assert [len(row) for row in answers] == [len(row) for row in scores] == [1, 3, 0, 2]
    for question, score, answer in zip(QUESTIONS, scores[STILL], answers[STILL], strict=True):
        assert alone.generate([[question]], 6)[0][0] == answer
        np.testing.assert_allclose([s.total for s in score], totals(alone, question), rtol=1e-5)


def test_generation_stops_at_the_end_token_and_at_the_limit(
    config, params, tokenizer, model, alone
):
    ((free,),) = alone.generate([[QUESTION]], 6)
    assert len(free.tokens) == 6
    assert not free.finished
    stopping = ElvaModel(config, params, tokenizer)
    stopping.engine.end_ids = (free.tokens[3],)
    ((stopped,),) = dataclasses.replace(alone, engine=stopping.engine).generate([[QUESTION]], 6)
    assert stopped.finished
    assert stopped.tokens == free.tokens[: free.tokens.index(free.tokens[3])]
    ((short,),) = alone.generate([[QUESTION]], 2)
    assert short.tokens == free.tokens[:2]


def test_answer_and_score_take_frames_and_files(model, videos, tmp_path):
    frames = videos[STILL]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    expected = model.answer(frames, QUESTION, max_new_tokens=6)
    assert isinstance(expected, str)
    assert (
        model.answer(tmp_path, QUESTION, max_new_tokens=6)
        == model.answer(
            Frames(pixels=frames, times=np.arange(4.0), duration=4.0), QUESTION, max_new_tokens=6
        )
        == expected
    )
    assert model.score(tmp_path, QUESTION, OPTIONS) == model.score(frames, QUESTION, OPTIONS)
    assert model.read_media(tmp_path, frames=2).clip.grids == ((4, 4),) * 2


def test_marker_is_the_place_of_the_video(model, shown, whole_forward):
    question = model.place_media("Look here: <video> What is it?")
    prefilled = model.prefill([shown[3]], prompts=[question], merging=False)
    ids = option_ids(model, "red")
    log_probs, _ = whole_forward(shown[3], question, ids, False)
    assert totals(prefilled, question, ("red",)) == pytest.approx(
        [log_probs[np.arange(len(ids)), ids].sum()], rel=1e-5
    )
    with pytest.raises(ElvaError, match="places its media differently"):
        prefilled.generate([["What is it?"]], 3)


def test_question_without_video(model, whole_forward):
    ids = option_ids(model, "red")
    log_probs, _ = whole_forward((), QUESTION, ids, False)
    (score,) = model.score(None, QUESTION, ["red"], merging=False)
    assert score.total == pytest.approx(log_probs[np.arange(len(ids)), ids].sum(), rel=1e-5)


def test_keep_frames_equals_a_video_of_those_frames(model, videos):
    frames = [videos[2][0], videos[0][1], videos[2][3]]
    kept = keep_frames(model.read_media(frames), [2, 0])
    expected = model.read_media([frames[2], frames[0]])
    assert kept.clip == expected.clip
    np.testing.assert_array_equal(kept.patches, expected.patches)


def test_few_programs_for_many_lengths(model, shown, alone):
    """Four question lengths need at most two grid lengths; a second prefill compiles nothing."""
    before = scoring.branch_scores._cache_size(), prefill_module.run_layer._cache_size()
    for n in range(2, 6):
        totals(alone, "what " * n + "?", ("red",))
    assert scoring.branch_scores._cache_size() - before[0] <= 2
    model.prefill([shown[STILL]])
    assert prefill_module.run_layer._cache_size() == before[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, v: g.answer([], QUESTION), "has no frames"),
        (lambda g, v: g.answer([np.zeros((8, 8), np.uint8)], QUESTION), "uint8 array"),
        (lambda g, v: g.answer("missing.mp4", QUESTION), "missing.mp4"),
        (lambda g, v: g.answer(v, "  "), "prompt is empty"),
        (lambda g, v: g.answer(v, [{"type": "video"}, " "]), "prompt is empty"),
        (
            lambda g, v: g.answer(v, [{"type": "video"}, "and", {"type": "video"}, "?"]),
            "the prompt: a part of type video names no video, and none is left",
        ),
        (
            lambda g, v: g.prefill([(g.read_media(v),) * 2], prompts=[["a", {"type": "video"}]]),
            "1 <image> or <video> markers for 2 media",
        ),
        (lambda g, v: g.answer(v, [{"type": "audio"}, "a"]), "neither text nor a medium"),
        (
            lambda g, v: g.answer([v], [{"type": "video", "start": 1}, "a"]),
            "frames at hand have neither bounds nor a number",
        ),
        (
            lambda g, v: g.answer(None, [{"type": "video", "video": "x.mp4", "fps": 2}, "a"]),
            "the prompt: asks for fps = 2",
        ),
        (
            lambda g, v: g.answer(None, [{"type": "video", "video": "x.mp4", "end": -1}, "a"]),
            "the time -1 s is not within a video",
        ),
        (lambda g, v: g.answer(v, "colour " * 999), "118, or 944 with RoPE scaled"),
        (lambda g, v: g.answer(v * 14, QUESTION), "118.*fewer or smaller frames"),
        (
            lambda g, v: g.prefill([(g.read_media(v),)]).generate([["colour " * 999]]),
            "118, or 944 with RoPE scaled",
        ),
        (lambda g, v: g.answer(v, QUESTION, max_new_tokens=0), "max_new_tokens=0"),
        (lambda g, v: g.score(v, QUESTION, []), "needs options"),
        (lambda g, v: g.score(v, QUESTION, ["red", " "]), "none of them empty"),
        (lambda g, v: g.score(v, QUESTION, ["red " * 999]), "118, or 944"),
        (lambda g, v: g.prefill([]), "no rows"),
    ],
)
def test_errors_are_one_clear_line(model, videos, call, message):
    with pytest.raises(ElvaError, match=message) as error:
        call(model, videos[STILL])
    assert "\n" not in str(error.value)


def test_a_run_without_elva_stage_is_refused(config, params, tokenizer):
    other = config.copy_and_resolve_references()
    other.curriculum = ("teacher",)
    with pytest.raises(ElvaError, match="no stage of kind 'elva'"):
        ElvaModel(other, params, tokenizer)
    with pytest.raises(ElvaError, match="stage 'teacher' trains a teacher"):
        ElvaModel(config, params, tokenizer, "teacher")
    assert ElvaModel(config, params, tokenizer).stage == "video"


def test_bfloat16_scores_are_close_to_float32(config, params, tokenizer, shown, whole_forward):
    half = config.copy_and_resolve_references()
    half.model.dtype = "bfloat16"
    model = ElvaModel(half, params, tokenizer)
    ids = option_ids(model, "red")
    log_probs, _ = whole_forward(shown[3], QUESTION, ids, False)
    (score,) = totals(model.prefill([shown[3]], merging=False), options=("red",))
    expected = log_probs[np.arange(len(ids)), ids].sum()
    assert score == pytest.approx(expected, rel=0.05)
    assert score != pytest.approx(expected, rel=1e-6)


def test_streamed_pieces_add_up_to_the_answer(model, alone):
    ((whole,),) = alone.generate([[QUESTION]], 12)
    pieces = list(alone.stream(QUESTION, 12))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_a_stop_string_ends_the_answer(model, alone):
    ((free,),) = alone.generate([[QUESTION]], 12)
    stop = free.text[len(free.text) // 2 :][:3]
    ((stopped,),) = alone.generate([[QUESTION]], 12, sampling=Sampling(stop=(stop,)))
    assert stopped.finished
    assert stopped.text == free.text[: free.text.index(stop)].rstrip()
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert "".join(alone.stream(QUESTION, 12, sampling=Sampling(stop=(stop,)))) == stopped.text


def test_a_seed_gives_the_same_answer_in_any_batch(model, alone, batch):
    hot = Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)
    rows = batch[True].generate([["Where?"], QUESTIONS, [], ["Which?"]], 8, sampling=hot)
    ((single,),) = alone.generate([[QUESTIONS[1]]], 8, sampling=hot)
    assert rows[STILL][1] == single
    others = {
        alone.generate([[QUESTIONS[1]]], 8, sampling=dataclasses.replace(hot, seed=seed))[0][
            0
        ].tokens
        for seed in range(4)
    }
    assert len(others) == 4


def test_the_repetition_penalty_counts_the_whole_conversation(model, alone, shown):
    ((answer,),) = alone.generate([[QUESTION]], 1, sampling=Sampling(repetition_penalty=50.0))
    prompt = {
        token
        for part in model.prompt_parts(QUESTION, shown[STILL])
        if isinstance(part, Text)
        for token in part.token_ids
    }
    ((longer,),) = alone.generate([[QUESTION]], 8, sampling=Sampling(repetition_penalty=50.0))
    assert answer.tokens == longer.tokens[:1]
    assert len({*longer.tokens, *prompt}) == len(longer.tokens) + len(prompt), (
        "with so high a penalty nothing comes twice"
    )


class Exactly:
    """Lengths without rounding to the grid."""

    def __init__(self, extra):
        self.extra = extra

    def __call__(self, name, tokens, smallest=16):
        return max(tokens, smallest if name == "answer" else 1) + self.extra


def test_logits_do_not_depend_on_buckets(model, shown):
    """Option scores with other lengths, also after merging layers, agree to 1e-5."""
    scores = [totals_with(model, shown[2], Exactly(extra)) for extra in (0, 7)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def totals_with(model, media, lengths):
    prefilled = model.prefill([media], lengths=lengths)
    return [
        score.total
        for score in prefilled.score([[Choice(QUESTION, OPTIONS)]], lengths=lengths)[0][0]
    ]
