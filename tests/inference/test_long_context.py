"""Sequences beyond the longest one of the model: RoPE is scaled for each row by its own length.

The reference is the forward pass of training over the whole sequence, once per token, of a model
whose configuration has the scaling that the rule asks for.
"""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.data.conversation import answer_ids
from elva_jax.errors import LayoutError
from elva_jax.inference.batches.dialogue import dialogue_parts
from elva_jax.inference.chat import Chat
from elva_jax.inference.long_context import longest_of, stretch_of
from elva_jax.inference.media import Request
from elva_jax.inference.sampling import Sampling
from elva_jax.inference.scoring import Choice
from elva_jax.models.elva import Elva
from elva_jax.video.layout import Text, TokenLayout, build_layout, pack

LENGTH = 192
NEAR = "Where is the blue, where the red?"  # with a video, a few tokens below the limit
LONG = "colour " * 40  # beyond it


@pytest.fixture(scope="module")
def reference(model, params):
    """Log-probabilities [A, V] at the last A tokens of a sequence."""
    limit = model.model_config.max_position

    @cache
    def program(factor, merging):
        config = model.model_config
        if factor > 1:
            config = dataclasses.replace(
                config,
                max_position=limit * factor,
                rope_scaling="yarn",
                rope_factor=float(factor),
                rope_original_max_position=limit,
            )
        elva = Elva(config)

        @jax.jit
        def forward(params, patches, layout):
            out = elva.apply({"params": params}, patches, layout, merging=merging)
            scores = elva.apply({"params": params}, out.hidden, method="head")
            return jax.nn.log_softmax(scores), out.survivor

        return forward

    def run(parts, media, count, merging):
        layout = build_layout(parts)
        factor = 1 if layout.length <= limit else 2 if layout.length <= 2 * limit else 4
        batched = TokenLayout(*(jnp.asarray(field)[None] for field in pack([layout], LENGTH)))
        patches = np.zeros((1, 64, 192), np.uint8)
        for item in media:
            patches[0, : len(item.patches)] = item.patches
        scores, survivor = program(factor, merging)(params, patches, batched)
        return np.asarray(scores)[0, survivor[0, layout.length - count : layout.length]]

    return run


def greedy(model, reference, question, media, count, merging):
    """The answer token by token; the next one after n tokens has the scaling for n."""
    parts, said = list(model.prompt_parts(question, media)), []
    while len(said) < count:
        tail = [Text(tuple(said))] if said else []
        scores = reference([*parts, *tail], media, 1, merging)[0]
        token = int(scores[: model.engine.vocab_size].argmax())
        if token in model.engine.end_ids:
            break
        said.append(token)
    return tuple(said)


def answer(model, question, media, count, **options):
    (found,) = model.generate([Request(list(media), question)], max_new_tokens=count, **options)
    return found


@pytest.mark.parametrize("merging", [False, True])
def test_an_answer_crosses_the_limit_as_the_rule_says(model, shown, reference, merging):
    (ids,) = [part.token_ids for part in model.prompt_parts(NEAR, shown[0])[-1:]]
    prompt = model.prefill([shown[0]]).prefix_tokens[0] + len(ids)
    limit = model.model_config.max_position
    assert 0 < limit - prompt < 8
    expected = greedy(model, reference, NEAR, shown[0], 14, merging)
    assert prompt + len(expected) > limit + 1
    assert answer(model, NEAR, shown[0], 14, merging=merging).tokens == expected


def test_the_room_for_an_answer_does_not_change_it(model, shown):
    for sampling in (Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)):
        whole = answer(model, NEAR, shown[0], 14, sampling=sampling)
        assert len(whole.tokens) > 9
        for count in (1, 6, 9):
            short = answer(model, NEAR, shown[0], count, sampling=sampling)
            assert short.tokens == whole.tokens[:count]
        streamed = model.stream(list(shown[0]), NEAR, max_new_tokens=14, sampling=sampling)
        assert "".join(streamed) == whole.text


def test_a_row_does_not_depend_on_the_others(model, shown, reference):
    requests = [Request(list(shown[b]), text) for b, text in ((0, NEAR), (1, LONG), (2, "What?"))]
    alone = [model.generate([request], max_new_tokens=10)[0] for request in requests]
    assert model.generate(requests, max_new_tokens=10) == alone

    options = ("red", "blue and red and green and blue")  # the second one crosses the limit
    questions = (NEAR, LONG, "What?")
    together = model.prefill(shown[:3]).score([[Choice(text, options)] for text in questions])
    for b, text in enumerate(questions):
        ((scores,),) = model.prefill([shown[b]]).score([[Choice(text, options)]])
        for one, other in zip(scores, together[b][0], strict=True):
            assert one.total == pytest.approx(other.total, abs=1e-4)
    parts = [*model.prompt_parts(NEAR, shown[0])]
    for option, found in zip(options, together[0][0], strict=True):
        ids = list(answer_ids(option, model.tokenizer))
        tail = [Text(tuple(ids[:-1]))] if ids[:-1] else []
        scores = reference([*parts, *tail], shown[0], len(ids), True)
        expected = scores[np.arange(len(ids)), ids].sum()
        assert found.total == pytest.approx(expected, rel=1e-4)


def test_a_prefix_serves_questions_of_any_length(model, shown):
    """As in evaluations, where the videos are read before the questions are known."""
    prefilled = model.prefill([shown[0]])
    asked = [NEAR, LONG, "What?"]
    (answers,) = prefilled.generate([asked], 10)
    assert answers == [answer(model, text, shown[0], 10) for text in asked]


def test_a_chat_crosses_as_an_answer_does(model, shown):
    chat, other = (Chat(model, list(shown[0]), max_new_tokens=14) for _ in range(2))
    first = chat.ask(NEAR)
    assert first == answer(model, NEAR, shown[0], 14)
    other.ask(NEAR)
    other._state = None  # the next turn reads the conversation again
    assert chat.ask("What is it?") == other.ask("What is it?")


def test_lengths_and_factors(model):
    config = model.model_config
    limit = config.max_position
    found = [
        stretch_of(config, tokens) for tokens in (1, limit, limit + 1, 2 * limit, 4 * limit + 1)
    ]
    assert found == [0, 0, 1, 1, 3]
    assert longest_of(config, 3) == 8 * limit
    with pytest.raises(LayoutError, match=f"take {8 * limit + 1} tokens"):
        stretch_of(config, 8 * limit + 1)


def test_text_that_cannot_fit_is_refused_by_its_characters(model):
    """Tokenizing it would take half a minute and gigabytes."""
    text = "word " * 4_000_000
    chat = Chat(model)
    ways = (
        lambda: model.prompt_parts(text, ()),
        lambda: model.prompt_parts(["What is it?", {"type": "text", "text": text}], ()),
        lambda: model.answer_ids(text),
        lambda: dialogue_parts(model, [("Where?", text), ("What?", "")], ()),
        lambda: dialogue_parts(model, [("What?", "")], (), text),
        lambda: chat.ask(text),
    )
    for way in ways:
        with pytest.raises(LayoutError, match=r"have 20,000,\d\d\d characters, far more than the"):
            way()
    # A text of as many tokens as can be, of which few are short, is tokenized.
    most = 8 * model.model_config.max_position
    assert len(model.prompt_parts("?" * (most // 2), ())[0].token_ids) > most // 2
