"""The engine: token arrays in, arrays out. It knows no strings and no files.

A `Prefix` holds the keys and values of prefilled prompts; questions and options are given as token
ids per row of it. `inference.model` adds the tokenizer and the media.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elva_jax.config.schema import ModelConfig
from elva_jax.inference import decode, prefill, stages
from elva_jax.inference.batching import GRID, ChooseLength, Rows, text_tokens
from elva_jax.inference.chunked_prefill import chunk_for, prefill_in_chunks
from elva_jax.inference.hidden import HiddenStates, collect
from elva_jax.inference.long_context import announce
from elva_jax.inference.params import Weights
from elva_jax.inference.placement import Placement
from elva_jax.inference.prefill import Prefix
from elva_jax.inference.sampling import GREEDY, Sampling, SamplingParams
from elva_jax.inference.scoring import Likelihood, OptionTree, Trees, branch_scores
from elva_jax.models.elva import merging_of
from elva_jax.ops.merging import NO_MERGING, Merging
from elva_jax.parallel.host_arrays import to_host
from elva_jax.video.layout import Clip, Text

Questions = Sequence[Sequence[Sequence[int]]]  # token ids of the questions of each row
Parts = Sequence[Text | Clip]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How far answers are decoded.

    Attributes:
      max_new_tokens: most tokens of an answer.
      capacity: slots that are free for them, at least as many; static.
      interval: tokens between two looks at the answers.
      sampling: how tokens are chosen.
    """

    max_new_tokens: int
    capacity: int
    interval: int
    sampling: Sampling = GREEDY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Answers as far as they have been decoded."""

    tokens: list[list[tuple[int, ...]]]  # of each row's answers, without the ending token
    ended: list[list[bool]]  # whether an ending token was chosen
    last: bool  # whether max_new_tokens is reached
    state: decode.DecodeState


class Engine:
    """A model's weights and what runs them.

    Args:
      config: the model.
      weights: its parameters.
      vocab_size: only ids below it are chosen.
      end_ids: tokens that end an answer.
      mesh: devices over which the weights and every batch are split; None: the first one.
      prefill_chunk: tokens of a row that prefill takes at a time; 0: all; None: all up to 16,384,
        and 4,096 of a longer row.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        vocab_size: int,
        end_ids: tuple[int, ...],
        mesh: Mesh | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        self.config = config
        self.prefill_chunk = prefill_chunk
        self.placement = Placement(config, mesh)
        self.weights = weights
        self.vocab_size = min(vocab_size, config.vocab_size)
        self.end_ids = end_ids

    def prefill(
        self, rows: Rows, *, merging: bool | Merging = True, lengths: ChooseLength = GRID
    ) -> Prefix:
        """Runs a batch of prompt prefixes through the decoder."""
        rules, rows = self._rules(merging=merging), self.placement.fill(rows)
        self.placement.check("the prompts", *_host(rows), repr(rules), self.prefill_chunk)
        announce(self.config, rows.length, rows.stretch)
        chunk = chunk_for(rows.layout.length, self.prefill_chunk)
        with stages.stage("prefill"), self.placement.on(len(rows.length)):
            if chunk is None:
                rows = self.placement.place(rows)
                prefix = prefill.prefill(self.config, self.weights, rows, rules, lengths)
            else:
                prefix = prefill_in_chunks(
                    self.config,
                    self.weights,
                    rows,
                    rules,
                    chunk=chunk,
                    put=self.placement.put,
                    lengths=lengths,
                )
            stages.wait(prefix.layers)
        return prefix

    def hidden_states(
        self, rows: Rows, layers: Sequence[int] | None, *, merging: bool | Merging = True
    ) -> HiddenStates:
        """The hidden states of one prompt; see `ElvaModel.hidden_states`."""
        rules = self._rules(merging=merging)
        self.placement.check("the prompt", *_host(rows), repr(rules), layers)
        rows = self.placement.place(rows)
        announce(self.config, rows.length, rows.stretch)
        with self.placement.on(len(rows.length)):
            return collect(self.config, self.weights, rows, layers, rules)

    def _rules(self, *, merging: bool | Merging) -> Merging:
        if isinstance(merging, bool):
            return merging_of(self.config) if merging else NO_MERGING
        return merging

    def start(
        self,
        prefix: Prefix,
        questions: Questions,
        decoding: Decoding,
        lengths: ChooseLength = GRID,
        prefix_parts: Sequence[Parts] = (),
        step: int = 0,
    ) -> decode.DecodeState:
        """Feeds the questions of every row and chooses the first token of each answer.

        `prefix_parts` is what each row's prefix holds, for the repetition penalty. `step` is the
        number of tokens of its answer that every question ends with.
        """
        batch, sampling = len(prefix.length), decoding.sampling
        groups = lengths("questions", max(map(len, questions)), 1)
        queries = lengths("question", max(len(ids) for row in questions for ids in row))
        token = np.zeros((batch, groups, queries), np.int32)
        length = np.zeros((batch, groups), np.int32)
        size = self.config.vocab_size if sampling.penalizes else 0
        repetition_mask = np.zeros((batch, groups, size), bool)
        for b, row in enumerate(questions):
            for g, ids in enumerate(row):
                token[b, g, : len(ids)], length[b, g] = ids, len(ids)
            if sampling.penalizes:
                repetition_mask[b, :, text_tokens(prefix_parts[b])] = True
        slots = queries + decoding.capacity
        with self.placement.on(batch):
            state = decode.new_state(
                prefix.config, prefix.length, groups, slots, repetition_mask, prefix.stretch
            )
        return self.feed(prefix, state, token, length, sampling, step)

    def feed(
        self,
        prefix: Prefix,
        state: decode.DecodeState,
        text: Int[np.ndarray, "B G Q"],
        length: Int[np.ndarray, "B G"],
        sampling: Sampling,
        step: int = 0,
    ) -> decode.DecodeState:
        """Feeds one more text to every suffix; see `decode.feed`."""
        self.placement.check("the questions", text, length, repr(sampling), step)
        params, weights, layers = self._params(sampling), self.weights, prefix.layers
        with stages.stage("decode"), self.placement.on(len(prefix.length)):
            return decode.feed(prefix.config, weights, layers, state, text, length, params, step)

    def decode(
        self, prefix: Prefix, state: decode.DecodeState, counts: Sequence[int], decoding: Decoding
    ) -> Iterator[Progress]:
        """Continues the answers, `counts` of each row, and yields them after every interval.

        The state is used up, as is every state but the last one that is yielded.
        """
        params, left = self._params(decoding.sampling), decoding.max_new_tokens
        tokens: list[list[tuple[int, ...]]] = [[()] * n for n in counts]
        ended = [[False]]
        while left > 0 and not all(map(all, ended)):
            steps = min(decoding.interval, left)
            with stages.stage("decode"), self.placement.on(len(prefix.length)):
                out, state = decode.advance(
                    prefix.config,
                    self.weights,
                    prefix.layers,
                    state,
                    decoding.capacity,
                    steps,
                    params,
                )
                out, alive = to_host((out, state.alive))
            left -= steps
            tokens = [
                [ids + tuple(out[b, g][out[b, g] >= 0].tolist()) for g, ids in enumerate(row)]
                for b, row in enumerate(tokens)
            ]
            ended = [[not alive[b, g] for g in range(n)] for b, n in enumerate(counts)]
            yield Progress(tokens=tokens, ended=ended, last=left == 0, state=state)

    def score(
        self, prefix: Prefix, trees: Sequence[Sequence[OptionTree]], lengths: ChooseLength = GRID
    ) -> list[list[list[Likelihood]]]:
        """The likelihoods of the options of every tree of each row."""
        flat = [tree for row in trees for tree in row]
        groups = lengths("questions", max(map(len, trees)), 1)
        queries = lengths("tree", max(len(tree.token) for tree in flat))
        targets = lengths("option tokens", max(len(tree.source) for tree in flat))
        shape = (len(prefix.length), groups)
        arrays = {
            name: np.full((*shape, size), fill, np.int32)
            for name, size, fill in (
                ("token", queries, 0),
                ("position", queries, 0),
                ("branch", queries, -1),
                ("source", targets, 0),
                ("target", targets, 0),
            )
        }
        for b, row in enumerate(trees):
            for g, tree in enumerate(row):
                for name, array in arrays.items():
                    values = getattr(tree, name)
                    array[b, g, : len(values)] = values
        self.placement.check("the options", arrays)
        with self.placement.on(len(prefix.length)):
            target = arrays.pop("target")
            padded = Trees(**arrays, stretch=prefix.stretch)
            scores = branch_scores(prefix.config, self.weights, prefix.layers, padded, target)
        scores = to_host(scores).astype(np.float64)
        return [
            [tree.likelihoods(scores[b, g]) for g, tree in enumerate(row)]
            for b, row in enumerate(trees)
        ]

    def _params(self, sampling: Sampling) -> SamplingParams:
        return sampling.params(self.vocab_size, self.end_ids)


def _host(rows: Rows) -> tuple[Any, ...]:
    """The arrays of a batch."""
    return rows.patches, rows.layout, rows.length, rows.stretch
