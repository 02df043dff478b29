"""Answers about videos from a trained model: decoding, streaming, and the likelihood of given answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.data import conversation
from elva_jax.data.tokenizer import VISUAL_TOKENS
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.inference import decode, kv_cache
from elva_jax.inference.batching import Lengths, build_rows, split_prompt, text_tokens
from elva_jax.inference.detokenize import tokens_before, visible
from elva_jax.inference.long_context import stretched
from elva_jax.inference.params import take_apart
from elva_jax.inference.prefill import Prefix, prefill
from elva_jax.inference.sampling import Sampling
from elva_jax.inference.scoring import Choice, Likelihood, Tree, plant
from elva_jax.models.build import config_from_dict
from elva_jax.video import clip
from elva_jax.video.clip import Source, Visual
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Clip, Text

Asked = Sequence[Sequence[Sequence[int]]]  # token ids of the questions of each row
GREEDY = Sampling()
WATCHED = 8  # tokens between two looks at an answer that a stop string may end
END = "<|im_end|>"


class Answer(NamedTuple):
    """A decoded answer."""

    text: str
    tokens: tuple[int, ...]  # without the ending token
    finished: bool  # False where max_new_tokens or the model's longest sequence cut it off


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

    def __init__(
        self,
        config: ConfigDict,
        params: Any,
        tokenizer: PreTrainedTokenizerBase,
        stage: str | None = None,
    ):
        self.config = config
        self.stage = stage or last_elva_stage(config)
        if config.stages[self.stage].kind != "elva":
            raise ConfigError(
                f"stage '{self.stage}' trains a {config.stages[self.stage].kind}, which answers nothing; give an ELVA stage"
            )
        self.data = config.stages[self.stage].data
        self.model = dataclasses.replace(
            config_from_dict(config.model, config.teacher), remat="none"
        )
        self.weights = take_apart(self.model, params.get("elva", params))
        self.tokenizer = tokenizer
        self.end_ids = tuple(
            sorted(
                {
                    tokenizer.convert_tokens_to_ids(END),
                    *([tokenizer.eos_token_id] if tokenizer.eos_token_id else []),
                }
            )
        )
        # Where the tokenizer has tokens that stand for visual ones, they are its last, and never an answer.
        words = tokenizer.get_vocab()
        self._words = min(
            (words[token] for token in VISUAL_TOKENS if token in words), default=len(tokenizer)
        )
        self._patch_width = self.model.patch.patch_size**2 * 3

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Generator:
        """Loads a run's workdir, one stage of it, one saved step, or an ELVA's Hugging Face folder.

        Raises:
          CheckpointError: nothing to load there.
          ConvertError: a folder of another kind, or a damaged one.
        """
        from elva_jax.hf.load import open_run_or_folder

        return cls.from_run(open_run_or_folder(path))

    @classmethod
    def from_run(cls, run: Any) -> Generator:
        """Takes a `training.checkpoint.Run`."""
        from elva_jax.data.tokenizer import load

        return cls(run.config, run.params, load(run.tokenizer_dir), run.stage)

    def load(
        self,
        source: Source,
        *,
        num_frames: int | None = None,
        hybrid: Hybrid | None = None,
        name: str | None = None,
    ) -> Visual:
        """Reads a video, image or frames at hand with the stage's settings; `num_frames` or `hybrid` replaces the stage's sampling.

        Raises:
          VideoError: the source cannot be read or has no frames.
        """
        return clip.load(
            source,
            num_frames=num_frames or self.data.num_frames,
            fps=0.0 if num_frames or hybrid else self.data.fps,
            longest_edge=self.data.longest_edge,
            patch_size=self.model.patch.patch_size,
            upscale=self.data.upscale,
            square=self.model.tower.image_size if self.model.tower else 0,
            name=name,
            hybrid=hybrid,
        )

    def answer(
        self,
        source: Source | None,
        prompt: str,
        max_new_tokens: int = 64,
        merging: bool = True,
        num_frames: int | None = None,
        hybrid: Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> str:
        """Answers one question about one video (None: about nothing).

        Args:
          source: path, bytes or frames of a video or image.
          prompt: the question.
          max_new_tokens: longest answer.
          merging: whether the model's merging layers act.
          num_frames: frames sampled from the video; by default as the stage says.
          hybrid: frames of two resolutions instead.
          sampling: how tokens are chosen; greedy by default.

        Raises:
          VideoError, LayoutError: see `load`, `prefill` and `generate`.
        """
        media = () if source is None else (self.load(source, num_frames=num_frames, hybrid=hybrid),)
        prefilled = self.prefill([media], merging=merging, prompts=[prompt], room=max_new_tokens)
        return self.generate(prefilled, [[prompt]], max_new_tokens, sampling=sampling)[0][0].text

    def score(
        self,
        source: Source | None,
        question: str,
        options: Sequence[str],
        merging: bool = True,
        num_frames: int | None = None,
        hybrid: Hybrid | None = None,
    ) -> list[Likelihood]:
        """The likelihood of each option as the assistant's whole answer to one question about one video."""
        media = () if source is None else (self.load(source, num_frames=num_frames, hybrid=hybrid),)
        prefilled = self.prefill([media], merging=merging, prompts=[question])
        return self.score_options(prefilled, [[Choice(question, tuple(options))]])[0][0]

    def prefill(
        self,
        media: Sequence[Sequence[Visual]],
        *,
        merging: bool = True,
        prompts: Sequence[str] | None = None,
        room: int = 1,
        lengths: Lengths | None = None,
    ) -> Prefilled:
        """Runs the videos of a batch of rows through the decoder, once for all questions about them.

        Args:
          media: the videos and images of each row, in order; () for none.
          merging: whether the model's merging layers act.
          prompts: per row, a question that says by `<video>` or `<image>` where its media stand; None: in front of every question.
          room: tokens that will follow the prompts; where all together outgrow the model's longest sequence, RoPE is stretched.
          lengths: chooses padded lengths here and in the other methods; None: the grid's smallest.

        Raises:
          LayoutError: no rows, an empty prompt, or more tokens than RoPE can be stretched for.
          DataError: markers that do not match the media.
        """
        if not media:
            raise LayoutError("nothing to do: the batch has no rows")
        media = tuple(map(tuple, media))
        prompts = prompts or ["?"] * len(media)
        parts = [
            self.prompt_parts(question, row) for question, row in zip(prompts, media, strict=True)
        ]
        return self.prefill_parts(parts, media, merging=merging, room=room, lengths=lengths)

    def prefill_parts(
        self,
        parts: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        *,
        merging: bool = True,
        room: int = 1,
        lengths: Lengths | None = None,
    ) -> Prefilled:
        """`prefill` of rendered prompts; the clips of a row's parts are its media in order."""
        prompts = [split_prompt(row) for row in parts]
        patches = [
            np.concatenate([item.patches for item in row])
            if row
            else np.zeros((0, self._patch_width), np.uint8)
            for row in media
        ]
        fronts = [prompt.front for prompt in prompts]
        rows = build_rows(fronts, patches, self._patch_width, lengths, self.model.frame_patches)
        longest = max(
            int(n) + len(prompt.question) for n, prompt in zip(rows.length, prompts, strict=False)
        )
        model = stretched(self.model, longest + room)
        prefix = prefill(model, self.weights, rows, merging, lengths)
        return Prefilled(
            tuple(media), tuple(fronts), tuple(map(int, rows.length[: len(media)])), prefix
        )

    def generate(
        self,
        prefilled: Prefilled,
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = 64,
        lengths: Lengths | None = None,
        sampling: Sampling = GREEDY,
    ) -> list[list[Answer]]:
        """Answers to the questions of each row, all decoded together.

        An answer ends at `<|im_end|>`, before a stop string, after `max_new_tokens`, or at the model's longest sequence.

        Raises:
          LayoutError: an empty question, one that places its media unlike the prefilled front, or more tokens than fit the model.
        """
        asked = [[self.question(prefilled, b, q) for q in row] for b, row in enumerate(questions)]
        if not any(asked):
            return [[] for _ in asked]
        *_, (answers, _) = self._answers(
            prefilled,
            asked,
            max_new_tokens,
            lengths,
            sampling,
            WATCHED if sampling.stop else max_new_tokens,
        )
        return answers

    def stream(
        self,
        prefilled: Prefilled,
        question: str,
        max_new_tokens: int = 64,
        lengths: Lengths | None = None,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str]:
        """One answer about a single prefilled row, piece by piece as its tokens are decoded; joined, they are what `generate` gives."""
        asked = [[self.question(prefilled, 0, question)]]
        yield from pieces(
            answer
            for ((answer,),), _ in self._answers(
                prefilled, asked, max_new_tokens, lengths, sampling, 1
            )
        )

    def begin(
        self,
        prefilled: Prefilled,
        asked: Asked,
        room: int,
        lengths: Lengths | None = None,
        sampling: Sampling = GREEDY,
    ) -> decode.State:
        """Feeds texts behind every row's front and chooses the first token of each answer; `room` slots are left for more."""
        lengths = lengths or Lengths()
        groups, queries = (
            lengths("questions", max(map(len, asked)), 1),
            lengths("question", max(len(ids) for row in asked for ids in row)),
        )
        batch = len(prefilled.prefix.length)
        token, length = (
            np.zeros((batch, groups, queries), np.int32),
            np.zeros((batch, groups), np.int32),
        )
        mentioned = np.zeros(
            (batch, groups, self.model.decoder.vocab_size if sampling.mode.penalise else 0), bool
        )
        for b, row in enumerate(asked):
            for g, ids in enumerate(row):
                token[b, g, : len(ids)], length[b, g] = ids, len(ids)
            if sampling.mode.penalise:
                mentioned[b, :, text_tokens(prefilled.fronts[b])] = True
        state = decode.new_state(
            prefilled.prefix.config, prefilled.prefix.length, groups, queries + room, mentioned
        )
        return self.ask(prefilled, state, token, length, sampling)

    def ask(
        self, prefilled: Prefilled, state: decode.State, token_BxGxQ, length_BxG, sampling: Sampling
    ) -> decode.State:
        """Feeds one more text to every continuation; see `decode.ask`."""
        prefix = prefilled.prefix
        return decode.ask(
            prefix.config,
            self._rules(sampling),
            self.weights,
            prefix.layers,
            state,
            token_BxGxQ,
            length_BxG,
            sampling.numbers,
        )

    def follow(
        self,
        prefilled: Prefilled,
        state: decode.State,
        counts: Sequence[int],
        most: int,
        room: int,
        sampling: Sampling,
        every: int,
    ) -> Iterator[tuple[list[list[Answer]], decode.State]]:
        """The answers so far and the state behind them, again after every `every` tokens until all have ended.

        Args:
          prefilled, state: behind `begin` or `ask`; the state that is passed in, and every one but the last that comes out, is used up.
          counts: how many continuations of each row are asked for.
          most: most tokens of an answer; `room` (static) or fewer.
        """
        prefix, rules = prefilled.prefix, self._rules(sampling)
        tokens: list[list[tuple[int, ...]]] = [[()] * n for n in counts]
        going = True
        while going:
            steps = min(every, most)
            out, state = decode.advance(
                prefix.config,
                rules,
                self.weights,
                prefix.layers,
                state,
                room,
                steps,
                sampling.numbers,
            )
            out, alive, most = np.asarray(out), np.asarray(state.alive), most - steps
            tokens = [
                [ids + tuple(int(t) for t in out[b, g] if t >= 0) for g, ids in enumerate(row)]
                for b, row in enumerate(tokens)
            ]
            answers = [
                [
                    self._answer(ids, not alive[b, g], most == 0, sampling)
                    for g, ids in enumerate(row)
                ]
                for b, row in enumerate(tokens)
            ]
            going = most > 0 and not all(answer.finished for row in answers for answer in row)
            yield answers, state

    def _answers(
        self,
        prefilled: Prefilled,
        asked: Asked,
        max_new_tokens: int,
        lengths: Lengths | None,
        sampling: Sampling,
        every: int,
    ) -> Iterator[tuple[list[list[Answer]], decode.State]]:
        """`follow` from the questions on; an answer also ends at the model's longest sequence."""
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        longest = max(
            prefilled.front_tokens[b] + len(ids) for b, row in enumerate(asked) for ids in row
        )
        most = min(max_new_tokens, prefilled.prefix.config.decoder.max_position - longest)
        lengths = lengths or Lengths()
        room = lengths("answer", most, 8)
        state = self.begin(prefilled, asked, room, lengths, sampling)
        yield from self.follow(
            prefilled, state, [len(row) for row in asked], most, room, sampling, every
        )

    def score_options(
        self,
        prefilled: Prefilled,
        choices: Sequence[Sequence[Choice]],
        lengths: Lengths | None = None,
    ) -> list[list[list[Likelihood]]]:
        """The likelihood of every option of every question of each row as the assistant's whole answer.

        Raises:
          LayoutError: an empty question or option, a question without options, or more tokens than fit the model.
        """
        trees = [
            [self._tree(prefilled, b, choice) for choice in row] for b, row in enumerate(choices)
        ]
        if not any(trees):
            return [[] for _ in trees]
        flat = [tree for row in trees for tree in row]
        lengths = lengths or Lengths()
        shape = (len(prefilled.prefix.length), lengths("questions", max(map(len, trees)), 1))
        queries = lengths("tree", max(len(tree.token) for tree in flat))
        asked = lengths("option tokens", max(len(tree.source) for tree in flat))
        token, position = (
            np.zeros((*shape, queries), np.int32),
            np.zeros((*shape, queries), np.int32),
        )
        branch = np.full((*shape, queries), -1, np.int32)
        source, target = np.zeros((*shape, asked), np.int32), np.zeros((*shape, asked), np.int32)
        for b, row in enumerate(trees):
            for g, tree in enumerate(row):
                n, m = len(tree.token), len(tree.source)
                token[b, g, :n], position[b, g, :n], branch[b, g, :n] = (
                    tree.token,
                    tree.position,
                    tree.branch,
                )
                source[b, g, :m], target[b, g, :m] = tree.source, tree.target
        prefix = prefilled.prefix
        scores = kv_cache.branch_scores(
            prefix.config, self.weights, prefix.layers, token, position, branch, source, target
        )
        scores = np.asarray(scores, np.float64)
        return [
            [tree.likelihoods(scores[b, g]) for g, tree in enumerate(row)]
            for b, row in enumerate(trees)
        ]

    def prompt_parts(self, question: str, media: Sequence[Visual]) -> list[Text | Clip]:
        """One question about some media as the model reads it, up to where the answer begins.

        Raises:
          LayoutError: an empty question.
          DataError: markers that do not match the media.
        """
        check_question(question)
        return conversation.prompt_parts(
            question, [item.clip for item in media], self.tokenizer, self.data.system_prompt
        )

    def question(self, prefilled: Prefilled, row: int, question: str) -> tuple[int, ...]:
        """Token ids of a question behind the row's front.

        Raises:
          LayoutError: it is empty, places its media unlike the front, or does not fit the model.
        """
        prompt = split_prompt(self.prompt_parts(question, prefilled.media[row]))
        if prompt.front != prefilled.fronts[row]:
            raise LayoutError(
                f"the question '{question[:60]}' places its media unlike the prefilled prompt; prefill with it"
            )
        _check_length(prefilled, prefilled.front_tokens[row] + len(prompt.question) + 1)
        return prompt.question

    def _tree(self, prefilled: Prefilled, row: int, choice: Choice) -> Tree:
        question = self.question(prefilled, row, choice.question)
        if not choice.options or not all(option.strip() for option in choice.options):
            raise LayoutError(
                f"the question '{choice.question[:60]}' needs options, none of them empty"
            )
        options = [
            conversation.token_ids(self.tokenizer, option.strip() + END)
            for option in choice.options
        ]
        _check_length(
            prefilled, prefilled.front_tokens[row] + len(question) + max(map(len, options))
        )
        return plant(question, options, prefilled.front_tokens[row])

    def _rules(self, sampling: Sampling) -> decode.Rules:
        return decode.Rules(
            sampling.mode, min(self._words, self.model.decoder.vocab_size), self.end_ids
        )

    def _answer(self, ids: tuple[int, ...], ended: bool, cut: bool, sampling: Sampling) -> Answer:
        text, stopped = visible(self.tokenizer, ids, sampling.stop, final=ended or cut)
        return Answer(
            text,
            ids[: tokens_before(self.tokenizer, ids, sampling.stop)] if stopped else ids,
            ended or stopped,
        )


def check_question(question: str) -> None:
    """Raises LayoutError where a question asks nothing."""
    if not conversation.MARKER.sub("", question).strip():
        raise LayoutError("the prompt is empty; ask something")


def pieces(answers: Iterable[Answer]) -> Iterator[str]:
    """What each of the growing answers adds to the one before."""
    shown = 0
    for answer in answers:
        if len(answer.text) > shown:
            yield answer.text[shown:]
            shown = len(answer.text)


def _check_length(prefilled: Prefilled, tokens: int) -> None:
    longest = prefilled.prefix.config.decoder.max_position
    if tokens > longest:
        raise LayoutError(
            f"the prompt and its answer take {tokens} tokens, the prefilled model's longest sequence is {longest};"
            " use fewer frames, or prefill with more room"
        )


def last_elva_stage(config: ConfigDict) -> str:
    """The last ELVA stage of a curriculum.

    Raises:
      ConfigError: there is none.
    """
    names = [name for name in config.curriculum if config.stages[name].kind == "elva"]
    if not names:
        raise ConfigError("curriculum: no stage of kind 'elva', so there is no model that answers")
    return names[-1]
