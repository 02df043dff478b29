"""Questions of benchmarks as queries of `inference.batches`, and replies as responses."""

from __future__ import annotations

from collections.abc import Sequence

from elva_jax.data.conversation import LETTERS
from elva_jax.data.example import Media
from elva_jax.errors import DataError, LayoutError
from elva_jax.evaluation.benchmarks.base import Question, Response
from elva_jax.evaluation.runner.settings import Way
from elva_jax.inference.batches.queries import Item, Query, Reply, Scoring, Writing, make_query
from elva_jax.inference.batches.reading import Read
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid


def item_of(
    model: PromptReader, question: Question, ways: Sequence[Way], max_new_tokens: int
) -> Item:
    """A question to be asked in every way; without options it is only written.

    Args:
      model: reads prompts.
      question: the question, which becomes the item's tag.
      ways: the ways of answering.
      max_new_tokens: length of a written answer.
    """

    def make(visuals: tuple[Visual, ...]) -> Query:
        if question.problem:
            raise DataError(question.problem)
        return query_of(model, question, visuals, ways, max_new_tokens)

    key, media = question.key, () if question.problem else question.media_key
    return Item(tag=question, name=key, media=media, make=make, key=key)


def query_of(
    model: PromptReader,
    question: Question,
    visuals: tuple[Visual, ...],
    ways: Sequence[Way],
    max_new_tokens: int,
) -> Query:
    """Renders a question in every way that it is asked.

    Raises:
      ElvaError: no text, options that cannot be scored, or more tokens than the model reads.
    """
    if not all(option.strip() for option in question.options):
        raise LayoutError(f"the question '{question.text[:60]}' has an empty option")
    if "letter" in ways and len(question.options) > len(LETTERS):
        raise LayoutError(
            f"the question '{question.text[:60]}' has {len(question.options)} options, more than"
            " there are letters; ask it by --answers generated,likelihood"
        )
    parts = model.prompt_parts(question.prompt, visuals)
    scorings = {}
    if "letter" in ways and question.options:
        letters = tuple(LETTERS[: len(question.options)])
        scorings["letter"] = _scoring(model, split_prompt(parts).question, letters)
    if "likelihood" in ways and question.options:
        bare = split_prompt(model.prompt_parts(question.text, visuals))
        scorings["likelihood"] = _scoring(model, bare.question, question.options)
    writing = Writing(max_new_tokens=max_new_tokens) if "generated" in ways else None
    return make_query(model.model_config, question, parts, writing, scorings)


def _scoring(model: PromptReader, question: tuple[int, ...], options: Sequence[str]) -> Scoring:
    return Scoring(question=question, options=tuple(map(model.answer_ids, options)))


def response_of(reply: Reply) -> Response:
    """The response to a question."""
    if reply.error:
        return Response(question=reply.tag, error=reply.error, fits=reply.fits)
    answer = reply.answer
    return Response(
        question=reply.tag,
        text=answer.text if answer else None,
        finished=answer.finished if answer else True,
        letters=reply.likelihoods.get("letter", ()),
        likelihoods=reply.likelihoods.get("likelihood", ()),
        tokens=reply.tokens,
        seconds=reply.seconds,
    )


def reader(model: PromptReader, frames: int | Hybrid | None) -> Read:
    """Reads a medium of a question; a number of frames of its own takes precedence.

    Args:
      model: reads media.
      frames: how videos are sampled that do not say it themselves.
    """

    def read(medium: Media, name: str) -> Visual:
        chosen = 1 if medium.kind == "image" else medium.frames or frames
        return model.read_media(medium.source, frames=chosen, name=name, span=medium.span)

    return read
