"""Answers about videos from a trained model: greedy decoding, and the likelihood of given answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.data import conversation
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.inference import extend, visual
from elva_jax.inference.prefill import Prefix, prefill
from elva_jax.inference.rows import Lengths, build_rows, split_prompt
from elva_jax.inference.visual import Source, Visual
from elva_jax.models.build import config_from_dict
from elva_jax.video.layout import Clip, Text

END = "<|im_end|>"
VISUAL = ("<FRAME>", "<PATCH>", "<LINE>")  # as transformers' side of an exported model knows them


class Answer(NamedTuple):
    """A decoded answer."""

    text: str
    tokens: tuple[int, ...]  # without the ending token
    finished: bool  # False where max_new_tokens or the model's longest sequence cut it off


class Choice(NamedTuple):
    """A question with the answers whose likelihoods are asked for."""

    question: str
    options: tuple[str, ...]


class Likelihood(NamedTuple):
    """How likely the model finds one option as its whole answer."""

    total: float  # sum of the tokens' natural log-probabilities, `<|im_end|>` included
    tokens: int  # how many those are

    @property
    def mean(self) -> float:
        """Per token: the length-normalised score."""
        return self.total / self.tokens


class Prefilled(NamedTuple):
    """Rows of videos, ready for any number of questions."""

    media: tuple[tuple[Visual, ...], ...]  # of each row
    fronts: tuple[tuple[Text | Clip, ...], ...]  # of each row: chat header and clips
    front_tokens: tuple[int, ...]  # of each row, before any merging
    prefix: Prefix  # of grid_batch(rows) rows


class Generator:
    """A trained model and its tokenizer.

    Args:
      config: the run's configuration.
      params: parameters of the ELVA model, or the tree of an ELVA stage that holds them under "elva".
      tokenizer: a ChatML tokenizer.
      stage: whose data settings (frames, longest edge, system prompt) apply; by default the last ELVA stage of the curriculum.

    Raises:
      ConfigError: there is no such stage, or it is not an ELVA stage.
    """

    def __init__(self, config: ConfigDict, params: Any, tokenizer: PreTrainedTokenizerBase, stage: str | None = None):
        self.config = config
        self.stage = stage or last_elva_stage(config)
        if config.stages[self.stage].kind != "elva":
            raise ConfigError(f"stage '{self.stage}' trains a {config.stages[self.stage].kind}, which answers nothing; give an ELVA stage")
        self.data = config.stages[self.stage].data
        self.model = dataclasses.replace(config_from_dict(config.model, config.teacher), remat="none")
        self.params = params.get("elva", params)
        self.tokenizer = tokenizer
        self.end_ids = tuple(sorted({tokenizer.convert_tokens_to_ids(END), *([tokenizer.eos_token_id] if tokenizer.eos_token_id else [])}))
        # Where the tokenizer has tokens that stand for visual ones, they are its last, and never an answer.
        words = tokenizer.get_vocab()
        self._words = min((words[token] for token in VISUAL if token in words), default=len(tokenizer))
        self._patch_width = self.model.patch.patch_size**2 * 3

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Generator:
        """Loads a run's workdir, one stage of it, one saved step, or an ELVA's Hugging Face folder.

        Raises:
          CheckpointError: nothing to load there.
          ConvertError: a folder of another kind, or a damaged one.
        """
        from elva_jax.convert.load import open_run_or_folder

        return cls.from_run(open_run_or_folder(path))

    @classmethod
    def from_run(cls, run: Any) -> Generator:
        """Takes a `training.checkpoint.Run`."""
        from elva_jax.data.tokenizer import load

        return cls(run.config, run.params, load(run.tokenizer_dir), run.stage)

    def load(self, source: Source, *, num_frames: int | None = None, name: str | None = None) -> Visual:
        """Reads a video, image or frames at hand with the stage's settings; `num_frames` replaces the stage's sampling.

        Raises:
          VideoError: the source cannot be read or has no frames.
        """
        return visual.load(
            source,
            num_frames=num_frames or self.data.num_frames,
            fps=0.0 if num_frames else self.data.fps,
            longest_edge=self.data.longest_edge,
            patch_size=self.model.patch.patch_size,
            upscale=self.data.upscale,
            square=self.model.tower.image_size if self.model.tower else 0,
            name=name,
        )

    def answer(
        self,
        source: Source | None,
        prompt: str,
        max_new_tokens: int = 64,
        merging: bool = True,
        num_frames: int | None = None,
    ) -> str:
        """Answers one question about one video (None: about nothing).

        Args:
          source: path, bytes or frames of a video or image.
          prompt: the question.
          max_new_tokens: longest answer.
          merging: whether the model's merging layers act.
          num_frames: frames sampled from the video; by default as the stage says.

        Raises:
          VideoError, LayoutError: see `load`, `prefill` and `generate`.
        """
        media = () if source is None else (self.load(source, num_frames=num_frames),)
        prefilled = self.prefill([media], merging=merging, prompts=[prompt])
        return self.generate(prefilled, [[prompt]], max_new_tokens)[0][0].text

    def score(
        self, source: Source | None, question: str, options: Sequence[str], merging: bool = True, num_frames: int | None = None
    ) -> list[Likelihood]:
        """The likelihood of each option as the assistant's whole answer to one question about one video."""
        media = () if source is None else (self.load(source, num_frames=num_frames),)
        prefilled = self.prefill([media], merging=merging, prompts=[question])
        return self.score_options(prefilled, [[Choice(question, tuple(options))]])[0][0]

    def prefill(
        self,
        media: Sequence[Sequence[Visual]],
        *,
        merging: bool = True,
        prompts: Sequence[str] | None = None,
        lengths: Lengths | None = None,
    ) -> Prefilled:
        """Runs the videos of a batch of rows through the decoder, once for all questions about them.

        Args:
          media: the videos and images of each row, in order; () for none.
          merging: whether the model's merging layers act.
          prompts: per row, a question that says by `<video>` or `<image>` where its media stand; None: in front of every question.
          lengths: chooses padded lengths here and in the other methods; None: the grid's smallest.

        Raises:
          LayoutError: no rows, an empty prompt, or more tokens than the model's longest sequence.
          DataError: markers that do not match the media.
        """
        if not media:
            raise LayoutError("nothing to do: the batch has no rows")
        media = tuple(map(tuple, media))
        prompts = prompts or ["?"] * len(media)
        fronts = [split_prompt(self.prompt_parts(question, row)).front for question, row in zip(prompts, media, strict=True)]
        patches = [np.concatenate([item.patches for item in row]) if row else np.zeros((0, self._patch_width), np.uint8) for row in media]
        rows = build_rows(fronts, patches, self._patch_width, lengths, self.model.frame_patches)
        for length in rows.length:
            self._check_length(int(length) + 1)
        prefix = prefill(self.model, self.params, rows, merging, lengths)
        return Prefilled(media, tuple(fronts), tuple(int(n) for n in rows.length[: len(media)]), prefix)

    def generate(
        self, prefilled: Prefilled, questions: Sequence[Sequence[str]], max_new_tokens: int = 64, lengths: Lengths | None = None
    ) -> list[list[Answer]]:
        """Greedy answers to the questions of each row, all decoded together.

        An answer ends at `<|im_end|>`, after `max_new_tokens`, or at the model's longest sequence.

        Raises:
          LayoutError: an empty question, one that places its media unlike the prefilled front, or more tokens than fit the model.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        asked = [[self._question(prefilled, b, q) for q in row] for b, row in enumerate(questions)]
        if not any(asked):
            return [[] for _ in asked]
        longest = 1 + max(prefilled.front_tokens[b] + len(ids) for b, row in enumerate(asked) for ids in row)
        limit = min(max_new_tokens, self.model.decoder.max_position - longest + 1)
        lengths = lengths or Lengths()
        shape = (prefilled.prefix.length.shape[0], lengths("questions", max(map(len, asked)), 1))
        token = np.zeros((*shape, lengths("question", max(len(ids) for row in asked for ids in row))), np.int32)
        length = np.zeros(shape, np.int32)
        for b, row in enumerate(asked):
            for g, ids in enumerate(row):
                token[b, g, : len(ids)], length[b, g] = ids, len(ids)
        room, vocabulary = lengths("answer", limit, 8), min(self._words, self.model.decoder.vocab_size)
        ends = np.asarray(self.end_ids, np.int32)
        out, finished = jax.device_get(
            extend.greedy(self.model, self.params, prefilled.prefix, token, length, room, vocabulary, ends, limit)
        )
        return [[self._answer(out[b, g], finished[b, g]) for g in range(len(row))] for b, row in enumerate(asked)]

    def score_options(
        self, prefilled: Prefilled, choices: Sequence[Sequence[Choice]], lengths: Lengths | None = None
    ) -> list[list[list[Likelihood]]]:
        """The likelihood of every option of every question of each row as the assistant's whole answer.

        Raises:
          LayoutError: an empty question or option, a question without options, or more tokens than fit the model.
        """
        trees = [[self._tree(prefilled, b, choice) for choice in row] for b, row in enumerate(choices)]
        if not any(trees):
            return [[] for _ in trees]
        flat = [tree for row in trees for tree in row]
        lengths = lengths or Lengths()
        shape = (prefilled.prefix.length.shape[0], lengths("questions", max(map(len, trees)), 1))
        queries = lengths("tree", max(len(tree.token) for tree in flat))
        asked = lengths("option tokens", max(len(tree.source) for tree in flat))
        token, position = np.zeros((*shape, queries), np.int32), np.zeros((*shape, queries), np.int32)
        branch = np.full((*shape, queries), -1, np.int32)
        source, target = np.zeros((*shape, asked), np.int32), np.zeros((*shape, asked), np.int32)
        for b, row in enumerate(trees):
            for g, tree in enumerate(row):
                n, m = len(tree.token), len(tree.source)
                token[b, g, :n], position[b, g, :n], branch[b, g, :n] = tree.token, tree.position, tree.branch
                source[b, g, :m], target[b, g, :m] = tree.source, tree.target
        scores = extend.branch_scores(self.model, self.params, prefilled.prefix, token, position, branch, source, target)
        scores = np.asarray(scores, np.float64)
        return [[tree.likelihoods(scores[b, g]) for g, tree in enumerate(row)] for b, row in enumerate(trees)]

    def prompt_parts(self, question: str, media: Sequence[Visual]) -> list[Text | Clip]:
        """One question about some media as the model reads it, up to where the answer begins.

        Raises:
          LayoutError: an empty question.
          DataError: markers that do not match the media.
        """
        if not conversation.MARKER.sub("", question).strip():
            raise LayoutError("the prompt is empty; ask something")
        return conversation.prompt_parts(question, [item.clip for item in media], self.tokenizer, self.data.system_prompt)

    def _question(self, prefilled: Prefilled, row: int, question: str) -> tuple[int, ...]:
        """Token ids behind the row's front."""
        prompt = split_prompt(self.prompt_parts(question, prefilled.media[row]))
        if prompt.front != prefilled.fronts[row]:
            raise LayoutError(f"the question '{question[:60]}' places its media unlike the prefilled prompt; prefill with it")
        self._check_length(prefilled.front_tokens[row] + len(prompt.question) + 1)
        return prompt.question

    def _tree(self, prefilled: Prefilled, row: int, choice: Choice) -> Tree:
        question = self._question(prefilled, row, choice.question)
        if not choice.options or not all(option.strip() for option in choice.options):
            raise LayoutError(f"the question '{choice.question[:60]}' needs options, none of them empty")
        options = [conversation.token_ids(self.tokenizer, option.strip() + END) for option in choice.options]
        self._check_length(prefilled.front_tokens[row] + len(question) + max(map(len, options)))
        return plant(question, options, prefilled.front_tokens[row])

    def _check_length(self, tokens: int) -> None:
        longest = self.model.decoder.max_position
        if tokens > longest:
            raise LayoutError(
                f"the prompt and its answer take {tokens} tokens, the model's longest sequence is {longest}; use fewer frames"
            )

    def _answer(self, tokens: np.ndarray, finished: bool) -> Answer:
        ids = tuple(int(token) for token in tokens if token >= 0)
        return Answer(self.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, bool(finished))


class Tree(NamedTuple):
    """A question and the options behind it, one behind the other, as `extend.branch_scores` takes them."""

    token: list[int]
    position: list[int]
    branch: list[int]  # 0: the question; 1 …: the option
    source: list[int]  # where each option token is predicted
    target: list[int]  # the option tokens
    counts: tuple[int, ...]  # tokens of each option

    def likelihoods(self, scores_M: np.ndarray) -> list[Likelihood]:
        """Sums the scores of each option's tokens."""
        ends = np.cumsum(self.counts)
        return [Likelihood(float(scores_M[end - n : end].sum()), n) for end, n in zip(ends, self.counts, strict=True)]


def plant(question: Sequence[int], options: Sequence[Sequence[int]], start: int) -> Tree:
    """Lays out a question that begins at position `start` and its options; an option's last token predicts nothing and is left out."""
    n = len(question)
    tree = Tree(list(question), list(range(start, start + n)), [0] * n, [], [], tuple(map(len, options)))
    for k, ids in enumerate(options, start=1):
        first = len(tree.token)
        tree.source.extend([n - 1, *range(first, first + len(ids) - 1)])
        tree.target.extend(ids)
        tree.token.extend(ids[:-1])
        tree.position.extend(range(start + n, start + n + len(ids) - 1))
        tree.branch.extend([k] * (len(ids) - 1))
    return tree


def last_elva_stage(config: ConfigDict) -> str:
    """The last ELVA stage of a curriculum.

    Raises:
      ConfigError: there is none.
    """
    names = [name for name in config.curriculum if config.stages[name].kind == "elva"]
    if not names:
        raise ConfigError("curriculum: no stage of kind 'elva', so there is no model that answers")
    return names[-1]
