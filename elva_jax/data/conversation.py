"""Conversations as ChatML tokens around visual tokens, with the loss on answers only.

The text tokens are the same that the tokenizer's chat template produces for these messages. The
tokens of a medium replace its marker; without markers, they begin the first user turn. White space
around a question, an answer or a marker is removed.

Special tokens in a question, an answer or a system prompt are text. So are markers in an answer, in
a system prompt, in the questions of a conversation without media, and after a backslash. Whoever
makes a question of text alone calls `escape`; only readers of formats whose markers are places do
not.

    <|im_start|>user [newline] [FRAME PATCH ... LINE] What moves?<|im_end|> [newline]
    <|im_start|>assistant [newline] A circle.<|im_end|> [newline]
                                    ^^^^^^^^^^^^^^^^^^^ learned
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from elva_jax.data.chat_template import render_bounded
from elva_jax.data.chat_tokens import token_ids
from elva_jax.data.example import Example, Turn
from elva_jax.errors import DataError
from elva_jax.video.layout import Clip, Text

MARKER = re.compile(r"(?<!\\)<(?:image|video)>")
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"  # between a question and its answer
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """A multiple-choice question as worded in training and evaluation; the answer is a letter.

    The result is text, as the question and the options are.
    """
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter."])


def render(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    clips: Sequence[Clip],
    system_prompt: str = "",
) -> list[Text | Clip]:
    """Renders a whole conversation for training.

    Answers and the `<|im_end|>` after them have weight 1, everything else has weight 0. Independent
    turns share the media but do not attend to each other: each is a conversation of one turn.

    Args:
      example: the conversation.
      tokenizer: a ChatML tokenizer; see `check_tokenizer`.
      clips: the clip of each medium.
      system_prompt: text of the system turn; "": none.

    Raises:
      DataError: there are no turns, an answer is empty, or the markers do not match the media.
    """
    check(example)
    clips = list(clips)
    if example.independent and not has_markers(example):
        return _render_branches(example, tokenizer, clips, system_prompt)
    pieces = split_questions(example, len(clips))
    parts: list[Text | Clip] = []
    before = _header(system_prompt)
    for turn, texts in zip(example.turns, pieces, strict=True):
        parts += _question(before, texts, clips, tokenizer)
        parts.append(_answer(turn, tokenizer))
        before = ("\n<|im_start|>user\n",)
    parts.append(Text(token_ids(tokenizer, "\n")))
    return [part for part in parts if isinstance(part, Clip) or len(part.token_ids)]


def _question(
    before: tuple[str, ...],
    texts: Sequence[str],
    clips: list[Clip],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Text | Clip]:
    """A user turn up to its answer: texts with clips between them, which are taken off `clips`."""
    parts: list[Text | Clip] = []
    for text in texts[:-1]:
        parts += [Text(token_ids(tokenizer, *before, text)), clips.pop(0)]
        before = ("",)
    return [*parts, Text(token_ids(tokenizer, *before, texts[-1], ANSWER))]


def _answer(turn: Turn, tokenizer: PreTrainedTokenizerBase, number: int = 0) -> Text:
    """An answer and its end, which are learned."""
    return Text(answer_ids(turn.answer, tokenizer), weight=1.0, turn=number)


def answer_ids(answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids of an answer, without the white space around it, and its `<|im_end|>`."""
    return token_ids(tokenizer, "", answer.strip(), "<|im_end|>")


def _render_branches(
    example: Example, tokenizer: PreTrainedTokenizerBase, clips: list[Clip], system_prompt: str
) -> list[Text | Clip]:
    """Renders every turn as a conversation of its own after the media that all turns share."""
    parts: list[Text | Clip] = [Text(token_ids(tokenizer, *_header(system_prompt))), *clips]
    for number, turn in enumerate(example.turns, start=1):
        question = unescape(turn.question).strip()
        parts.append(Text(token_ids(tokenizer, "", question, ANSWER), turn=number))
        parts.append(_answer(turn, tokenizer, number))
    return parts


def prompt_parts(
    question: str,
    clips: Sequence[Clip],
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str = "",
) -> list[Text | Clip]:
    """Renders one question for inference, up to and including the assistant's header.

    Raises:
      DataError: the markers in the question do not match the clips.
    """
    answered = Example("prompt", (), (Turn(question, "answer"),))
    return render(answered, tokenizer, clips, system_prompt)[:-2]


def follow_up(
    question: str, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase
) -> list[Text | Clip]:
    """Renders a later question, from the end of the previous answer to the beginning of its own.

    Raises:
      DataError: the markers in the question do not match the clips.
    """
    example = Example("prompt", (), (Turn(question, "answer"),))
    (texts,) = split_questions(example, len(clips))
    parts = _question(("<|im_end|>\n<|im_start|>user\n",), texts, list(clips), tokenizer)
    return [part for part in parts if isinstance(part, Clip) or len(part.token_ids)]


def check(example: Example) -> None:
    """Checks that an example has turns and that every turn has an answer.

    Raises:
      DataError: there are no turns, or an answer is empty.
    """
    if not example.turns:
        raise DataError(f"{example.key}: the conversation is empty")
    for turn in example.turns:
        if not turn.answer.strip():
            raise DataError(f"{example.key}: a question has no answer")


def has_markers(example: Example) -> bool:
    """Whether any question contains the marker of a medium; without media, markers are text."""
    return bool(example.media) and any(MARKER.search(turn.question) for turn in example.turns)


def truncate(example: Example, turns: int) -> Example:
    """Keeps the first `turns` turns and their media."""
    kept = example.turns[:turns]
    media = (
        sum(len(MARKER.findall(turn.question)) for turn in kept)
        if has_markers(example)
        else len(example.media)
    )
    return dataclasses.replace(example, turns=kept, media=example.media[:media])


def turn_tokens(turn: Turn, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of text tokens that a turn after the first one adds to a conversation."""
    texts = split_text(turn.question)
    clips = [Clip(())] * (len(texts) - 1)
    parts = _question(("\n<|im_start|>user\n",), texts, clips, tokenizer)
    text = [part for part in (*parts, _answer(turn, tokenizer)) if isinstance(part, Text)]
    return sum(len(part.token_ids) for part in text)


def split_text(question: str) -> list[str]:
    """The text of a question around its markers, without the white space beside them."""
    # A pattern that takes in the white space before a marker would need quadratic time.
    return [unescape(text).strip() for text in MARKER.split(question)]


def question_text(example: Example, turn: Turn) -> str:
    """The text of a question as a person reads it, without the places of media."""
    if not example.media:
        return unescape(turn.question).strip()
    return "\n".join(filter(None, split_text(turn.question)))


def escape(text: str) -> str:
    """Escapes the markers in a text, so that they are text in the question that it becomes."""
    return re.sub("(?=<(?:image|video)>)", r"\\", text)


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    return re.sub(r"\\(?=<(?:image|video)>)", "", text)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that the tokenizer's chat template is the ChatML that `render` writes.

    Raises:
      DataError: the template differs, fails, or exceeds the limits of `render_bounded`.
    """
    turns = (Turn("What is it?", "A red circle."), Turn("And now?", "Gone."))
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    text = render_bounded(tokenizer, messages)
    expected = list(token_ids(tokenizer, text))
    ours = [
        token
        for part in render(Example("check", (), turns), tokenizer, (), "Be brief.")
        if isinstance(part, Text)
        for token in part.token_ids
    ]
    if ours != expected:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path}: its chat template is not ChatML "
            "(<|im_start|>role ... <|im_end|>); use a Qwen2 tokenizer"
        )


def vocabulary_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token of the vocabulary."""
    return tokenizer.convert_tokens_to_ids(token)  # type: ignore[return-value]  # one id, no list


def _header(system: str) -> tuple[str, ...]:
    """The pieces before the first question: templates and the system prompt in turn."""
    user = "<|im_start|>user\n"
    return ("<|im_start|>system\n", system, f"<|im_end|>\n{user}") if system else (user,)


def split_questions(example: Example, media: int) -> list[list[str]]:
    """Splits the text of each question at its markers.

    Raises:
      DataError: the number of markers differs from the number of media.
    """
    if not media:
        return [[unescape(turn.question).strip()] for turn in example.turns]
    pieces = [split_text(turn.question) for turn in example.turns]
    markers = sum(len(texts) - 1 for texts in pieces)
    if markers == 0:
        pieces[0] = [""] * media + pieces[0]
    elif markers != media:
        raise DataError(
            f"{example.key}: {markers} <image> or <video> markers for {media} media; "
            "write \\<video> where the word is meant"
        )
    return pieces
