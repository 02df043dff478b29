"""Decoding after a prefilled prefix: questions in, tokens out, for all suffixes together.

`feed` runs a text through the decoder and chooses the first token after it; `advance` continues
the answers, some tokens at a time. The state goes from call to call, so that tokens can be shown as
they come and a conversation can continue after an answer.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.kv_cache import PrefixCache, SuffixCache, append_tokens, empty_suffix
from elva_jax.inference.long_context import row_cos_sin
from elva_jax.inference.params import Weights, logits
from elva_jax.inference.sampling import SamplingParams, choose
from elva_jax.utils.arrays import AnyArray


class DecodeState(NamedTuple):
    """G suffixes of each of B rows, with T slots each."""

    suffix: tuple[SuffixCache, ...]  # of every layer
    filled: Bool[Array, "B G T"]  # which slots hold tokens of the suffix
    repetition_mask: Bool[Array, "B G V"]  # tokens that the conversation holds; V may be 0
    slot: Int32[Array, ""]  # where the next token is written
    position: Int32[Array, "B G"]  # RoPE position of the next token
    token: Int32[Array, "B G"]  # the chosen next token
    alive: Bool[Array, "B G"]  # whether that token belongs to the answer
    stretch: Int32[Array, " B"]  # how RoPE is scaled for each row
    step: Int32[Array, ""]  # tokens of the answer before it


@partial(jax.jit, static_argnums=(0, 2, 3))
def new_state(
    config: ModelConfig,
    length: Int[AnyArray, " B"],
    groups: int,
    slots: int,
    repetition_mask: Bool[AnyArray, "B G V"],
    stretch: Int[AnyArray, " B"],
) -> DecodeState:
    """Suffixes without a token yet, at the positions where the prefixes of their rows end."""
    batch = len(length)
    position = jnp.asarray(length, jnp.int32)
    return DecodeState(
        suffix=empty_suffix(config, batch, groups, slots),
        filled=jnp.zeros((batch, groups, slots), bool),
        repetition_mask=jnp.asarray(repetition_mask),
        slot=jnp.int32(0),
        position=jnp.broadcast_to(position[:, None], (batch, groups)),
        token=jnp.zeros((batch, groups), jnp.int32),
        alive=jnp.zeros((batch, groups), bool),
        stretch=jnp.asarray(stretch, jnp.int32),
        step=jnp.int32(0),
    )


@partial(jax.jit, static_argnums=1)
def grow(state: DecodeState, slots: int) -> DecodeState:
    """The same suffixes with `slots` slots each."""
    more = slots - state.filled.shape[-1]
    widths = [(0, 0)] * 3 + [(0, more), (0, 0)]
    suffix = jax.tree.map(lambda leaf: jnp.pad(leaf, widths), state.suffix)
    return state._replace(suffix=suffix, filled=jnp.pad(state.filled, [(0, 0), (0, 0), (0, more)]))


@partial(jax.jit, donate_argnums=0)
def rollback(state: DecodeState, tokens: Int[Array, ""] | int) -> DecodeState:
    """Rolls every suffix back by its last `tokens` tokens."""
    slots = jnp.arange(state.filled.shape[-1])[None, None]
    return state._replace(
        filled=state.filled & (slots < state.slot - tokens),
        slot=state.slot - tokens,
        position=state.position - tokens,
    )


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def feed(
    config: ModelConfig,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    state: DecodeState,
    text: Int[Array, "B G Q"],
    length: Int[Array, "B G"],
    sampling: SamplingParams,
    step: Int[Array, ""] | int = 0,
) -> DecodeState:
    """Appends a text to every suffix and chooses the first token of the answer.

    Texts are padded on the right; Q slots must be free, and a length of 0 leaves a suffix unused.
    `step` is the number of tokens of the answer that the text ends with. The state is used up.
    """
    slots = jnp.arange(state.filled.shape[-1])[None, None]
    place = jnp.arange(text.shape[2])[None, None]
    fed = (slots >= state.slot) & (slots < state.slot + length[..., None])
    filled = state.filled | fed
    causal = slots[:, :, None] <= state.slot + place[..., None]
    attention_mask = filled[:, :, None] & causal
    position = state.position[..., None] + place
    x, suffix = append_tokens(
        config,
        weights,
        prefix,
        state.suffix,
        state.slot,
        text,
        row_cos_sin(config, position.reshape(len(text), -1), state.stretch),
        attention_mask,
    )
    last = jnp.maximum(length - 1, 0)[..., None, None]
    scores = logits(config, weights, jnp.take_along_axis(x, last, axis=2)[:, :, 0])
    mask = state.repetition_mask
    if sampling.penalize:
        row = jnp.arange(mask.shape[0])[:, None, None]
        group = jnp.arange(mask.shape[1])[None, :, None]
        mask = mask.at[row, group, text].max(place < length[..., None])
    size = sampling.vocab_size
    token = choose(scores[..., :size], sampling, mask[..., :size], step)
    return DecodeState(
        suffix=suffix,
        filled=filled,
        repetition_mask=mask,
        slot=state.slot + text.shape[2],
        position=state.position + length,
        token=token,
        alive=(length > 0) & ~jnp.isin(token, jnp.asarray(sampling.end_ids)),
        stretch=state.stretch,
        step=jnp.asarray(step, jnp.int32),
    )


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def advance(
    config: ModelConfig,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    state: DecodeState,
    capacity: int,
    steps: Int[Array, ""] | int,
    sampling: SamplingParams,
) -> tuple[Int32[Array, "B G capacity"], DecodeState]:
    """Continues every answer by up to `steps` tokens, for which slots must be free.

    Returns the tokens, at most `capacity` (static), -1 where an answer has ended, and the state
    after them. The state that is passed in is used up.
    """
    end_ids, size = jnp.asarray(sampling.end_ids), sampling.vocab_size
    slots = jnp.arange(state.filled.shape[-1])[None, None]

    def unfinished(loop):
        done, _, state = loop
        return (done < steps) & jnp.any(state.alive)

    def step(loop):
        done, out, state = loop
        out = out.at[:, :, done].set(jnp.where(state.alive, state.token, -1))
        mask = state.repetition_mask
        if sampling.penalize:
            mask = mask | (jnp.arange(mask.shape[-1])[None, None] == state.token[..., None])
        filled = state.filled | (state.alive[..., None] & (slots == state.slot))
        # The token of an ended answer attends to itself, so that its row stays finite.
        attention_mask = (filled | (slots == state.slot))[:, :, None]
        x, suffix = append_tokens(
            config,
            weights,
            prefix,
            state.suffix,
            state.slot,
            state.token[..., None],
            row_cos_sin(config, state.position, state.stretch),
            attention_mask,
        )
        scores = logits(config, weights, x[:, :, 0])[..., :size]
        token = choose(scores, sampling, mask[..., :size], state.step + 1)
        state = DecodeState(
            suffix=suffix,
            filled=filled,
            repetition_mask=mask,
            slot=state.slot + 1,
            position=state.position + state.alive,
            token=token,
            alive=state.alive & ~jnp.isin(token, end_ids),
            stretch=state.stretch,
            step=state.step + 1,
        )
        return done + 1, out, state

    out = jnp.full((*state.token.shape, capacity), -1, jnp.int32)
    _, out, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), out, state))
    return out, state
