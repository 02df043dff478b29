"""Everything that is measured about the videos of a split, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elva_jax.data.conversation import LETTERS, choice_prompt
from elva_jax.errors import DataError, VideoError
from elva_jax.evaluation.answers import exact_match, option_index
from elva_jax.evaluation.baselines import middle_frame
from elva_jax.evaluation.questions import Question, Video
from elva_jax.evaluation.result import EvalConfig, Prediction
from elva_jax.evaluation.scores import Score, summarize
from elva_jax.inference.batching import Lengths
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.prefilled import Answer, Prefilled
from elva_jax.inference.scoring import Choice, Likelihood
from elva_jax.video.clip import Visual
from elva_jax.video.layout import clip_tokens

BOOTSTRAP_SEED = 0
Scores = Sequence[Sequence[Sequence[Likelihood]]]  # per video and question: one per option
Answers = Sequence[Sequence[Answer]]  # per video and question


class Measurements:
    """Asks a model about videos, and collects its predictions.

    Args:
      model: the model.
      config: what to measure.
      rows: number of videos that short batches are padded to, so that one program serves all.
      most_questions: largest number of questions about one video.
    """

    def __init__(self, model: ElvaModel, config: EvalConfig, rows: int, most_questions: int):
        self.model, self.config, self.rows = model, config, rows
        self.predictions: list[Prediction] = []
        self.unreadable: list[str] = []
        self.visual_kept: list[float] = []  # per video: share of visual tokens, over all layers
        self.tokens: list[np.ndarray] = []  # per video: before merging, then per layer block
        self._lengths = {
            kind: Lengths(steady=True)
            for kind in ("video", "options", "letters", "written", "baselines")
        }
        for lengths in self._lengths.values():
            lengths("questions", most_questions, 1)

    def add(self, videos: Sequence[Video], visuals: Sequence[Visual | VideoError]) -> None:
        """Measures one batch; questions about a video that cannot be read have no credit."""
        readable = []
        for video, seen in zip(videos, visuals, strict=True):
            if isinstance(seen, VideoError):
                self.unreadable.append(f"{video.key}: {seen.reason}")
                self.predictions += [self._predict(item, {}, None) for item in video.questions]
            else:
                readable.append((video, seen))
        if not readable:
            return
        padding = self.rows - len(readable)
        media = [(seen,) for _, seen in readable] + [(readable[-1][1],)] * padding
        questions = [video.questions for video, _ in readable] + [()] * padding
        scores, answers = self._ask(media, questions, len(readable))
        for b, row in enumerate(questions):
            for g, item in enumerate(row):
                own = {column: found[b][g] for column, found in scores.items()}
                answer = answers[b][g] if answers else None
                self.predictions.append(self._predict(item, own, answer))

    def _ask(
        self, media: Sequence[tuple[Visual]], questions: Sequence[Sequence[Question]], readable: int
    ) -> tuple[dict[str, Scores], Answers | None]:
        """Likelihoods of the options by column, and written answers."""
        config, lengths = self.config, self._lengths
        choices = [[Choice(item.text, item.options) for item in row] for row in questions]
        prefilled = self.model.prefill(media, merging=config.merging, lengths=lengths["video"])
        self._count_tokens(prefilled, readable)
        scores: dict[str, Scores] = {}
        answers = None
        scores["likelihood"] = prefilled.score(choices, lengths=lengths["options"])
        if config.letters:
            listed = [[_with_letters(item) for item in row] for row in questions]
            scores["letter"] = prefilled.score(listed, lengths=lengths["letters"])
        if config.written:
            texts = [[item.text for item in row] for row in questions]
            answers = prefilled.generate(texts, config.max_new_tokens, lengths=lengths["written"])
        if config.baselines:
            shown: dict[str, list[tuple[Visual, ...]]] = {
                "single_frame": [(middle_frame(seen),) for (seen,) in media],
                "blind": [()] * len(media),
            }
            for column, frames in shown.items():
                # Nothing can merge in one frame or in none.
                prefilled = self.model.prefill(frames, merging=False, lengths=lengths["baselines"])
                scores[column] = prefilled.score(choices, lengths=lengths["baselines"])
        return scores, answers

    def _predict(
        self, item: Question, scores: Mapping[str, Sequence[Likelihood]], answer: Answer | None
    ) -> Prediction:
        """Picks and credits; no credits without scores."""
        config, options = self.config, scores.get("likelihood")
        picks = {"likelihood": likeliest(options), "likelihood_mean": likeliest(options, mean=True)}
        for column in ("letter",) * config.letters + ("single_frame", "blind") * config.baselines:
            picks[column] = likeliest(scores.get(column))
        right = option_index(item.answer, item.options)
        credit: dict[str, float] = {}
        if answer is not None:
            credit["open"] = float(exact_match(answer.text, item.answer))
        if scores:
            credit |= {column: float(pick == right) for column, pick in picks.items()}
            if config.baselines:
                credit["any_object"] = item.any_object
        return Prediction(
            question=item,
            answer=answer,
            log_likelihoods=tuple(score.total for score in options) if options else None,
            picks=picks,
            credit=credit,
        )

    def _count_tokens(self, prefilled: Prefilled, count: int) -> None:
        """Records how many tokens of the first `count` videos each layer block worked on."""
        blocks = prefilled.prefix.blocks
        layers = np.asarray([block.stop - block.start for block in blocks])
        for b in range(count):
            before, after = prefilled.prefix_tokens[b], prefilled.prefix.tokens[:, b]
            visual = sum(clip_tokens(seen.clip) for seen in prefilled.media[b])
            kept = after - (before - visual)
            self.visual_kept.append(float((layers * kept).sum() / (layers.sum() * visual)))
            self.tokens.append(np.asarray([before, *after]))

    def scores(self) -> tuple[dict[str, dict[str, Score]], dict[str, Score]]:
        """Scores by family and column, and the macro mean by column, of what could be read.

        Raises:
          DataError: no video could be read.
        """
        read = [prediction for prediction in self.predictions if prediction.credit]
        if not read:
            raise DataError(f"no video could be read, such as {self.unreadable[0]}")
        family = [prediction.question.family for prediction in read]
        video = [prediction.question.video for prediction in read]
        families: dict[str, dict[str, Score]] = {}
        macro = {}
        for column in read[0].credit:
            credit = [prediction.credit[column] for prediction in read]
            per_family, macro[column] = summarize(credit, family, video, seed=BOOTSTRAP_SEED)
            for name, score in per_family.items():
                families.setdefault(name, {})[column] = score
        return families, macro

    def answer_counts(self) -> dict[str, int]:
        """Counts of written answers; unreadable videos have neither answers nor likelihoods."""
        answered = [(prediction.answer, prediction.question) for prediction in self.predictions]
        pairs = [(answer, item) for answer, item in answered if answer is not None]
        outside = [option_index(answer.text, item.options) is None for answer, item in pairs]
        picks = [prediction.picks["likelihood"] for prediction in self.predictions]
        return {
            "total": len(pairs),
            "empty": sum(not answer.text for answer, _ in pairs),
            "unfinished": sum(not answer.finished for answer, _ in pairs),
            "outside_options": sum(outside),
            "without_likelihood": picks.count(None),
        }

    def token_counts(self) -> dict[str, Any]:
        """Means over the videos that could be read."""
        if not self.tokens:
            return {"prompt": None, "segments": [], "visual_kept": None}
        before, *after = np.mean(self.tokens, axis=0)
        return {
            "prompt": float(before),
            "segments": [float(n) for n in after],
            "visual_kept": float(np.mean(self.visual_kept)),
        }


def likeliest(scores: Sequence[Likelihood] | None, *, mean: bool = False) -> int | None:
    """The option with the highest score (per token if `mean`), the first of equal ones.

    None if there are no scores, or one is not finite.
    """
    if not scores:
        return None
    values = [score.mean if mean else score.total for score in scores]
    return int(np.argmax(values)) if np.all(np.isfinite(values)) else None


def _with_letters(item: Question) -> Choice:
    """The question with its options listed in the prompt and letters to choose from."""
    letters = tuple(LETTERS[: len(item.options)])
    return Choice(choice_prompt(item.text, item.options), letters)
