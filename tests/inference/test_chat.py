"""Tests that a cached conversation equals the forward pass over the whole conversation."""

import jax
import numpy as np
import pytest

from elva_jax.errors import DataError, LayoutError
from elva_jax.inference.chat import Chat
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.sampling import Sampling
from elva_jax.models.elva import Elva
from elva_jax.video.layout import Text, TokenLayout, build_layout, pack

QUESTIONS = ("What colour?", "Where is it?", "And now?")


@pytest.fixture(scope="module")
def spacious(config, params, tokenizer):
    """The model with a maximum length that is enough for a conversation."""
    longer = config.copy_and_resolve_references()
    longer.model.max_position = 512
    return ElvaModel(longer, params, tokenizer)


@pytest.fixture(scope="module")
def likeliest(spacious, params):
    """The argmax before every token of an answer, from one forward pass over the conversation.

    Conversations are padded so that they all use one compiled program.
    """
    elva, length = Elva(spacious.model_config), 256

    @jax.jit
    def forward(params, patches, layout):
        out = elva.apply({"params": params}, patches, layout, merging=True)
        return elva.apply({"params": params}, out.hidden, method="head"), out.survivor

    def tokens(parts, media, answer):
        layout = build_layout([*parts, Text(tuple(answer))])
        patches = np.zeros((1, 128, 192), np.uint8)
        shown = np.concatenate([item.patches for item in media])
        patches[0, : len(shown)] = shown
        scores, survivor = forward(
            params, patches, TokenLayout(*(field[None] for field in pack([layout], length)))
        )
        before = layout.length - len(answer) - 1
        return (
            np.asarray(scores)[
                0, survivor[0, before : layout.length - 1], : len(spacious.tokenizer)
            ]
            .argmax(-1)
            .tolist()
        )

    return tokens


def test_every_turn_equals_the_forward_pass_over_the_conversation(spacious, likeliest, videos):
    """The second turn continues the first; the third has a video, so everything is read again."""
    media = [spacious.read_media(videos[0]), spacious.read_media(videos[1][:2])]
    chat, parts, seen = Chat(spacious, max_new_tokens=6), [], []
    for question, new in zip(QUESTIONS, ([media[0]], (), [media[1]]), strict=True):
        answer = chat.ask(question, new)
        if parts:
            ids = [
                token
                for text in ("<|im_end|>", "\n<|im_start|>user\n")
                for token in spacious.tokenizer.encode(text)
            ]
            rest = question + "<|im_end|>\n<|im_start|>assistant\n"
            parts.append(Text(tuple(ids)))
            parts += [item.clip for item in new]
            parts.append(Text(tuple(spacious.tokenizer.encode(rest))))
        else:
            parts = list(spacious.prompt_parts(question, new))
        seen += new
        assert list(answer.tokens) == likeliest(parts, seen, answer.tokens)
        assert answer.tokens
        parts.append(Text(answer.tokens))


def test_a_stop_string_rolls_back_what_was_fed_after_it(spacious, videos):
    """The next turn attends to the truncated answer, as if the text were replayed."""
    media = [spacious.read_media(videos[0])]
    free = Chat(spacious, max_new_tokens=6).ask(QUESTIONS[0], media)
    stop = spacious.tokenizer.decode(free.tokens[2:3])
    chat = Chat(spacious, max_new_tokens=6, sampling=Sampling(stop=(stop,)))
    first = chat.ask(QUESTIONS[0], media)
    assert first.finished
    assert len(first.tokens) <= 3
    cached = chat.ask(QUESTIONS[1])
    replayed = Chat(spacious, max_new_tokens=6, sampling=Sampling(stop=(stop,)))
    replayed.ask(QUESTIONS[0], media)
    replayed._state = None
    assert replayed.ask(QUESTIONS[1]) == cached


def test_interrupted_turn_is_rolled_back(spacious, videos):
    media = [spacious.read_media(videos[0])]
    chat, other = (Chat(spacious, max_new_tokens=6) for _ in range(2))
    for each in (chat, other):
        each.ask(QUESTIONS[0], media)
    stream = chat.stream("Why?")
    next(stream)
    stream.close()
    assert chat.ask(QUESTIONS[1]) == other.ask(QUESTIONS[1])


def test_long_conversations_grow_and_scale_rope(model, videos, caplog):
    """The suffix cache exceeds its initial capacity; beyond the maximum length RoPE is scaled."""
    caplog.set_level("INFO", "elva_jax")
    chat = Chat(model, max_new_tokens=6)
    chat.ask(QUESTIONS[0], [model.read_media(videos[0])])
    for _ in range(2):
        chat.ask("What is it then, what else?")
    assert "longest sequence of 118: RoPE is scaled by 2 (yarn)" in caplog.text


def test_errors(model, videos):
    chat = Chat(model)
    with pytest.raises(LayoutError, match="prompt is empty"):
        chat.ask(" ")
    media = [model.read_media(videos[0])]
    with pytest.raises(DataError, match="a part of type video names no video, and none is left"):
        chat.ask(model.place_media("Look: <video> what? <video>"), media)
    with pytest.raises(DataError, match="1 of 2 media have no part of their own"):
        chat.ask(model.place_media("Look: <video> what?"), media * 2)
