"""Conversations as tokens around visual tokens, with the loss on answers only.

`data.prompt_format` has the tokens around questions and answers. In ChatML the text tokens are the
same that the tokenizer's chat template produces for these messages. The tokens of a medium replace
its marker; without markers, they begin the first user turn. White space around a question, an
answer or a marker is removed.

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
from elva_jax.data.prompt_format import CHATML, Place, PromptFormat
from elva_jax.errors import DataError
from elva_jax.video.layout import Clip, Text

MARKER = re.compile(r"(?<!\\)<(?:image|video)>")
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
    form: PromptFormat = CHATML,
) -> list[Text | Clip]:
    """Renders a whole conversation for training.

    Answers and the end after each of them have weight 1, everything else has weight 0. Independent
    turns share the media but do not attend to each other: each is a conversation of one turn.

    Args:
      example: the conversation.
      tokenizer: a tokenizer with the tokens of the format; see `check_tokenizer`.
      clips: the clip of each medium.
      system_prompt: text of the system turn; "": none.
      form: the tokens around questions and answers.

    Raises:
      DataError: there are no turns, an answer is empty, or the markers do not match the media.
    """
    check(example)
    if example.independent and not has_markers(example):
        return _render_branches(example, tokenizer, clips, system_prompt, form)
    parts = _render_turns(example, tokenizer, clips, system_prompt, form)
    last = Text(form.answer_ids(example.turns[-1].answer, tokenizer), weight=1.0)
    return _not_empty([*parts, last, Text(form.last_ids(tokenizer))])


def render_prompt(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    clips: Sequence[Clip],
    system_prompt: str = "",
    form: PromptFormat = CHATML,
) -> list[Text | Clip]:
    """Renders a conversation for inference, up to where its last answer begins; see `render`."""
    check(example)
    return _not_empty(_render_turns(example, tokenizer, clips, system_prompt, form))


def render_caption(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    clips: Sequence[Clip],
    form: PromptFormat = CHATML,
) -> list[Text | Clip]:
    """Renders the first answer after the media, without any question.

    Every text token after the format's first one is learned; see `build_layout`'s `captions`.

    Raises:
      DataError: there are no turns, or an answer is empty.
    """
    check(example)
    first = form.first_ids(tokenizer)
    caption = form.answer_ids(example.turns[0].answer, tokenizer)
    if not first and not clips:  # nothing precedes the caption's first token
        first, caption = caption[:1], caption[1:]
    return _not_empty([Text(first), *clips, Text(caption, weight=1.0)])


def _render_turns(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    clips: Sequence[Clip],
    system_prompt: str,
    form: PromptFormat,
) -> list[Text | Clip]:
    """A conversation up to where its last answer begins."""
    parts: list[Text | Clip] = []
    left = list(clips)
    for number, texts in enumerate(split_questions(example, len(left))):
        if number:
            answer = form.answer_ids(example.turns[number - 1].answer, tokenizer)
            parts.append(Text(answer, weight=1.0))
        own, left = left[: len(texts) - 1], left[len(texts) - 1 :]
        place: Place = "next" if number else "first"
        parts += form.question(texts, own, tokenizer, place=place, system=system_prompt)
    return parts


def answer_ids(
    answer: str, tokenizer: PreTrainedTokenizerBase, form: PromptFormat = CHATML
) -> tuple[int, ...]:
    """Token ids of an answer, without the white space around it, and of its end."""
    return form.answer_ids(answer, tokenizer)


def _render_branches(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    clips: Sequence[Clip],
    system_prompt: str,
    form: PromptFormat,
) -> list[Text | Clip]:
    """Renders every turn as a conversation of its own after the media that all turns share."""
    parts = form.shared(clips, tokenizer, system_prompt)
    for number, turn in enumerate(example.turns, start=1):
        question = unescape(turn.question).strip()
        parts.append(Text(form.branch(question, tokenizer, system_prompt), turn=number))
        parts.append(Text(form.answer_ids(turn.answer, tokenizer), weight=1.0, turn=number))
    return parts


def _not_empty(parts: Sequence[Text | Clip]) -> list[Text | Clip]:
    return [part for part in parts if isinstance(part, Clip) or len(part.token_ids)]


def prompt_parts(
    question: str,
    clips: Sequence[Clip],
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str = "",
    form: PromptFormat = CHATML,
) -> list[Text | Clip]:
    """Renders one question for inference, up to where its answer begins.

    Raises:
      DataError: the markers in the question do not match the clips.
    """
    asked = Example("prompt", (), (Turn(question, "answer"),))
    return render_prompt(asked, tokenizer, clips, system_prompt, form)


def follow_up(
    question: str,
    clips: Sequence[Clip],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat = CHATML,
) -> list[Text | Clip]:
    """Renders a later question, from the end of the previous answer to the beginning of its own.

    Raises:
      DataError: the markers in the question do not match the clips.
    """
    example = Example("prompt", (), (Turn(question, "answer"),))
    (texts,) = split_questions(example, len(clips))
    return _not_empty(form.question(texts, clips, tokenizer, place="after_answer"))


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


def turn_tokens(turn: Turn, tokenizer: PreTrainedTokenizerBase, form: PromptFormat = CHATML) -> int:
    """Number of text tokens that a turn after the first one adds to a conversation."""
    texts = split_text(turn.question)
    clips = [Clip(())] * (len(texts) - 1)
    parts = form.question(texts, clips, tokenizer, place="next")
    text = sum(len(part.token_ids) for part in parts if isinstance(part, Text))
    return text + len(form.answer_ids(turn.answer, tokenizer))


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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, form: PromptFormat = CHATML) -> None:
    """Checks that the tokenizer's chat template is the ChatML that `render` writes.

    Raises:
      DataError: the template differs, fails, or exceeds the limits of `render_bounded`; or the
        tokenizer lacks the tokens of another format.
    """
    form.check(tokenizer)
    if form is not CHATML:
        return
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
