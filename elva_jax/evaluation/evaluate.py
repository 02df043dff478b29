"""Accuracy of a trained model on a split of questions about videos, family by family, with the floors beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import elva_jax
from elva_jax.data import sources
from elva_jax.data.conversation import LETTERS, choice_prompt
from elva_jax.errors import ConfigError, DataError, VideoError
from elva_jax.evaluation.answers import exact_match, option_index
from elva_jax.evaluation.baselines import any_object, middle_frame
from elva_jax.evaluation.scores import Score, summarise
from elva_jax.inference.batching import Lengths
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.prefilled import Answer, Prefilled
from elva_jax.inference.scoring import Choice, Likelihood
from elva_jax.ops.attention import Implementation, choose_implementation
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import clip_tokens

BOOTSTRAP_SEED = 0
DECODERS = 2  # threads that read videos ahead of the model


class Item(NamedTuple):
    """One question of the split."""

    key: str  # of its video
    family: str
    question: str
    answer: str
    options: tuple[str, ...]
    any_object: float  # expected accuracy of naming any object of the video


class Video(NamedTuple):
    """One record of the split."""

    key: str
    source: bytes | str
    items: tuple[Item, ...]


class Tally:
    """What a run of the evaluation gathers: per question its credits and predictions, per batch its tokens."""

    def __init__(self):
        self.items: list[Item] = []
        self.credit: dict[str, list[float]] = {}
        self.answers: list[Answer | None] = []
        self.unreadable: list[str] = []
        self.predictions: list[dict[str, Any]] = []
        self.kept: list[
            float
        ] = []  # per video: its visual tokens that remain, averaged over the decoder's layers
        self.tokens: list[
            np.ndarray
        ] = []  # per video: tokens before merging, then in every segment

    def add(self, item: Item, **credit: float) -> None:
        """Records one question's credit in every column."""
        self.items.append(item)
        for column, value in credit.items():
            self.credit.setdefault(column, []).append(float(value))

    def summaries(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Rows of the report: per family, and macro."""
        family, video = [item.family for item in self.items], [item.key for item in self.items]
        rows: dict[str, dict[str, Any]] = {}
        macro: dict[str, Any] = {}
        for column, credit in self.credit.items():
            per_family, mean = summarise(credit, family, video, seed=BOOTSTRAP_SEED)
            macro[column] = _as_dict(mean)
            for name, score in per_family.items():
                rows.setdefault(name, {"count": score.count})[column] = _as_dict(score)
        return rows, macro


def evaluate(
    run: str | Path | Any,
    *,
    data_dir: str | Path | None = None,
    name: str = "moving_shapes/easy",
    split: str = "test",
    merging: bool = True,
    limit: int | None = None,
    baselines: bool = True,
    num_frames: int | None = None,
    hybrid: Mapping[str, int | str] | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    written: bool = True,
    letters: bool = True,
    details: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures a model on questions with an open answer and options.

    Every question counts, whether its answer could be used or not; the questions about a video that cannot be read count as wrong.

    Args:
      run: a checkpoint's path, a `training.checkpoint.Run`, or a ElvaModel.
      data_dir: where data sets are built; None: as the run says.
      name: data set.
      split: split of it.
      merging: whether the model's merging layers act.
      limit: only the first so many videos.
      baselines: whether blind, any-object and single-frame accuracies are measured too (by likelihood).
      num_frames: frames sampled from a video; None: as the run's last stage says.
      hybrid: fields of `video.resolution.Hybrid`, for frames of two resolutions instead; the others by `video.resolution.complete`.
      batch_size: videos at a time.
      max_new_tokens: longest written answer.
      written: whether answers are decoded and compared by exact match.
      letters: whether the options are also listed in the prompt and their letters' likelihoods compared.
      details: whether the result holds every question with its predictions, as `items`.
      progress: called with (videos done, videos in all).

    Returns:
      {"data", "model", "settings", "families": {family: {"count", column: {"accuracy", "stderr"}}}, "macro", "answers", "tokens",
      "seconds", "versions", "attention", "config"}. Columns: open (exact match), likelihood (likeliest option text; likelihood_mean: per
      token), letter, and the baselines blind, any_object, single_frame.

    Raises:
      ElvaError: no such checkpoint, data set or split; no questions with options in it.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: must be at least 1")
    start = time.monotonic()
    generator, origin = _generator(run)
    data_dir = Path(data_dir or generator.config.data_dir)
    videos = _read_split(name, split, data_dir, limit)
    most_questions = max(len(video.items) for video in videos)
    columns = Columns(
        generator, merging, most_questions, max_new_tokens, written, letters, baselines
    )
    tally, done = Tally(), 0
    plan = generator.hybrid(**(hybrid or {}))
    for batch, visuals in _batches(generator, videos, batch_size, num_frames, plan):
        columns.measure(batch, visuals, min(batch_size, len(videos)), tally)
        done += len(batch)
        if progress:
            progress(done, len(videos))
    data = {
        "name": name,
        "split": split,
        "videos": len(videos),
        "questions": len(tally.items),
        "unreadable": tally.unreadable,
    }
    settings = {
        "merging": merging,
        "num_frames": plan.frames if plan else num_frames or generator.data.num_frames,
        "hybrid": plan and dataclasses.asdict(plan),
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "limit": limit,
        "bootstrap_seed": BOOTSTRAP_SEED,
    }
    result = _result(generator, tally) | {
        "data": data | {"data_dir": str(data_dir)},
        "settings": settings | _sizing(generator),
    }
    result["model"] |= origin
    result["seconds"] = time.monotonic() - start
    return result | ({"items": tally.predictions} if details else {})


def _result(generator: ElvaModel, tally: Tally) -> dict[str, Any]:
    """What the report says of the model and its answers."""
    families, macro = tally.summaries()
    return {
        "model": {
            "stage": generator.stage,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(generator.engine.weights)),
        },
        "families": families,
        "macro": macro,
        "answers": _count_answers(tally),
        "tokens": _count_tokens(tally),
        "versions": {
            "elva_jax": elva_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        },
        "attention": str(_attention(generator)),
        "config": generator.config.to_dict(),
    }


def _attention(generator: ElvaModel) -> Implementation:
    model = generator.model_config
    return choose_implementation(model.head_dim, model.dtype, model.attention)


def _sizing(generator: ElvaModel) -> dict[str, Any]:
    config = generator.config
    return {
        "longest_edge": generator.data.longest_edge,
        "patch_size": config.model.patch_size,
        "training_seed": config.seed,
    }


class Columns:
    """Everything that is measured about a batch of videos."""

    def __init__(
        self,
        generator: ElvaModel,
        merging: bool,
        most_questions: int,
        max_new_tokens: int,
        written: bool,
        letters: bool,
        baselines: bool,
    ):
        self.generator = generator
        self.merging = merging
        self.most_questions = most_questions
        self.max_new_tokens = max_new_tokens
        self.written, self.letters, self.baselines = written, letters, baselines
        self._lengths: dict[str, Lengths] = {}

    def measure(
        self,
        batch: Sequence[Video],
        visuals: Sequence[Visual | VideoError],
        rows: int,
        tally: Tally,
    ) -> None:
        """Adds a batch's questions to the tally; `rows` is what short batches are filled up to."""
        readable = [
            (video, seen)
            for video, seen in zip(batch, visuals, strict=True)
            if isinstance(seen, Visual)
        ]
        for video, error in zip(batch, visuals, strict=True):
            if isinstance(error, VideoError):
                tally.unreadable.append(f"{video.key}: {error.reason}")
                for item in video.items:
                    self._add(tally, item, None, None, None, {"blind": None, "single_frame": None})
        if not readable:
            return
        filler = rows - len(readable)
        media = [(seen,) for _, seen in readable] + [(readable[-1][1],)] * filler
        items = [video.items for video, _ in readable] + [()] * filler
        choices = [[Choice(item.question, item.options) for item in row] for row in items]
        prefilled = self.generator.prefill(
            media, merging=self.merging, lengths=self._length("video")
        )
        options = prefilled.score(choices, lengths=self._length("options"))
        listed = answers = None
        if self.letters:
            lettered = [
                [
                    Choice(choice_prompt(c.question, c.options), tuple(LETTERS[: len(c.options)]))
                    for c in row
                ]
                for row in choices
            ]
            listed = prefilled.score(lettered, lengths=self._length("letters"))
        if self.written:
            questions = [[item.question for item in row] for row in items]
            answers = prefilled.generate(
                questions, self.max_new_tokens, lengths=self._length("written")
            )
        floors = self._floors(media, choices) if self.baselines else {}
        self._tally_tokens(prefilled, len(readable), tally)
        for b, row in enumerate(items):
            for g, item in enumerate(row):
                beside = {column: scores[b][g] for column, scores in floors.items()}
                self._add(
                    tally,
                    item,
                    options[b][g],
                    listed and listed[b][g],
                    answers and answers[b][g],
                    beside,
                )

    def _floors(
        self, media: Sequence[tuple[Visual]], choices: Sequence[Sequence[Choice]]
    ) -> dict[str, list]:
        """Option likelihoods with the middle frame only and without the video; nothing can merge in either."""
        out, lengths = {}, self._length("floors")
        for column, shown in (
            ("single_frame", [(middle_frame(seen),) for (seen,) in media]),
            ("blind", [()] * len(media)),
        ):
            prefilled = self.generator.prefill(shown, merging=False, lengths=lengths)
            out[column] = prefilled.score(choices, lengths=lengths)
        return out

    def _length(self, kind: str) -> Lengths:
        if kind not in self._lengths:
            self._lengths[kind] = Lengths(steady=True)
            self._lengths[kind]("questions", self.most_questions, 1)
        return self._lengths[kind]

    def _add(
        self,
        tally: Tally,
        item: Item,
        options,
        listed,
        answer: Answer | None,
        beside: dict[str, Any],
    ) -> None:
        """One question's credits; None stands for what could not be measured and counts as wrong."""
        right = option_index(item.answer, item.options)
        picks = {"likelihood": likeliest(options), "likelihood_mean": likeliest(options, mean=True)}
        if self.letters:
            picks["letter"] = likeliest(listed)
        credit = (
            {"open": exact_match(answer.text, item.answer) if answer else False}
            if self.written
            else {}
        )
        if self.baselines:
            picks |= {column: likeliest(scores) for column, scores in beside.items()}
        credit |= {column: pick is not None and pick == right for column, pick in picks.items()}
        if self.baselines:
            credit["any_object"] = item.any_object
        tally.add(item, **credit)
        tally.answers.append(answer)
        tally.predictions.append(
            {
                "video": item.key,
                "family": item.family,
                "question": item.question,
                "answer": item.answer,
                "options": list(item.options),
                "written": answer.text if answer else None,
                "log_likelihoods": [score.total for score in options] if options else None,
                "picks": picks,
            }
        )

    def _tally_tokens(self, prefilled: Prefilled, count: int, tally: Tally) -> None:
        """Adds how many tokens of each of the first `count` videos every segment worked on."""
        layers = np.asarray([piece.stop - piece.start for piece in prefilled.prefix.blocks])
        for b in range(count):
            before, after = prefilled.prefix_tokens[b], prefilled.prefix.tokens[:, b]
            visual = sum(clip_tokens(seen.clip) for seen in prefilled.media[b])
            tally.kept.append(
                float((layers * (after - (before - visual))).sum() / (layers.sum() * visual))
            )
            tally.tokens.append(np.asarray([before, *after]))


def likeliest(scores: Sequence[Likelihood] | None, mean: bool = False) -> int | None:
    """The option with the highest score (per token if `mean`), the first of equals; None if there are none or one is not finite."""
    if not scores:
        return None
    values = [score.mean if mean else score.total for score in scores]
    return int(np.argmax(values)) if np.all(np.isfinite(values)) else None


def _as_dict(score: Score) -> dict[str, float]:
    return {"accuracy": score.accuracy, "stderr": score.stderr}


def _generator(run: Any) -> tuple[ElvaModel, dict[str, Any]]:
    """The model to measure, and where it comes from."""
    if isinstance(run, ElvaModel):
        return run, {"checkpoint": None, "step": None}
    path = None
    if isinstance(run, (str, Path)):
        from elva_jax.hf.open_model import open_run_or_folder

        path, run = str(run), open_run_or_folder(run)
    return ElvaModel.from_run(run), {"checkpoint": path, "step": int(run.step)}


def _read_split(name: str, split: str, data_dir: Path, limit: int | None) -> list[Video]:
    """The questions of every record that has some; media stay encoded."""
    records = sources.open_source(name, split, data_dir)
    videos = []
    for index in range(min(limit or len(records), len(records))):
        record = records[index]
        example = sources.to_example(record, ("open",), name)
        named = sources.annotation(record).get("named_objects", ())
        items = []
        for turn in example.turns:
            if not turn.options:
                continue
            if option_index(turn.answer, turn.options) is None:
                raise DataError(
                    f"{example.key}: the answer '{turn.answer}' to '{turn.question[:60]}' is not exactly one of its options"
                )
            floor = any_object(turn.answer, turn.options, named)
            items.append(
                Item(example.key, turn.family, turn.question, turn.answer, turn.options, floor)
            )
        if items:
            videos.append(Video(example.key, example.media[0].source, tuple(items)))
    if not videos:
        raise DataError(f"{data_dir / name}: split '{split}' has no question with options")
    return videos


def _batches(
    generator: ElvaModel,
    videos: Sequence[Video],
    size: int,
    num_frames: int | None,
    hybrid: Hybrid | None,
) -> Iterator[tuple[Sequence[Video], list[Visual | VideoError]]]:
    """Batches of videos with their frames, one batch read ahead."""

    def read(video: Video) -> Visual | VideoError:
        try:
            return generator.read_media(video.source, frames=hybrid or num_frames, name=video.key)
        except VideoError as error:
            return error

    pieces = [videos[i : i + size] for i in range(0, len(videos), size)]
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: list[Future] = [pool.submit(read, video) for video in pieces[0]]
        for k, piece in enumerate(pieces):
            current = ahead
            ahead = (
                [pool.submit(read, video) for video in pieces[k + 1]] if k + 1 < len(pieces) else []
            )
            yield piece, [future.result() for future in current]


def _count_answers(tally: Tally) -> dict[str, int]:
    """What became of the written answers; those of unreadable videos are neither written nor scored."""
    pairs = [
        (answer, item)
        for answer, item in zip(tally.answers, tally.items, strict=True)
        if answer is not None
    ]
    return {
        "total": len(pairs),
        "empty": sum(not answer.text for answer, _ in pairs),
        "unfinished": sum(not answer.finished for answer, _ in pairs),
        "outside_options": sum(
            option_index(answer.text, item.options) is None for answer, item in pairs
        ),
        "without_likelihood": sum(
            prediction["picks"]["likelihood"] is None for prediction in tally.predictions
        ),
    }


def _count_tokens(tally: Tally) -> dict[str, Any]:
    """Means over the videos that could be read."""
    if not tally.tokens:
        return {"prompt": None, "segments": [], "visual_kept": None}
    before, *after = np.mean(tally.tokens, axis=0)
    return {
        "prompt": float(before),
        "segments": [float(n) for n in after],
        "visual_kept": float(np.mean(tally.kept)),
    }
