"""Decoding behind a prefilled front: questions in, tokens out, some at a time, for all continuations together.

The state goes from call to call, so that tokens can be shown as they come and a conversation can go on behind an answer.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.inference.kv_cache import Tail, extend, new_tail
from elva_jax.inference.params import Weights, logits
from elva_jax.inference.prefill import KeysValues
from elva_jax.inference.sampling import Mode, Numbers, choose
from elva_jax.models.config import ElvaConfig


class State(NamedTuple):
    """Continuations on the way; T slots each."""

    tail: tuple[Tail, ...]  # of every layer
    seen: jax.Array  # [B, G, T] bool, which slots hold tokens of the continuation
    mentioned: (
        jax.Array
    )  # [B, G, V] bool, tokens that the conversation holds; V is 0 where none are penalised
    slot: jax.Array  # int32, where the next token is written
    position: jax.Array  # int32 [B, G], RoPE position of the next token
    token: jax.Array  # int32 [B, G], the chosen next token
    alive: jax.Array  # [B, G] bool, whether that token belongs to the answer
    step: jax.Array  # int32, tokens of the answer before it


class Rules(NamedTuple):
    """How tokens are chosen, for all steps of one answer; hashable."""

    mode: Mode
    vocabulary: int  # only ids below it are chosen
    ends: tuple[int, ...]  # tokens that end an answer


def new_state(
    config: ElvaConfig, length_B: np.ndarray, groups: int, slots: int, mentioned_BxGxV: np.ndarray
) -> State:
    """Continuations without a token yet, at the positions where their rows' fronts end."""
    batch = len(length_B)
    return State(
        tail=new_tail(config, batch, groups, slots),
        seen=jnp.zeros((batch, groups, slots), bool),
        mentioned=jnp.asarray(mentioned_BxGxV),
        slot=jnp.int32(0),
        position=jnp.broadcast_to(jnp.asarray(length_B, jnp.int32)[:, None], (batch, groups)),
        token=jnp.zeros((batch, groups), jnp.int32),
        alive=jnp.zeros((batch, groups), bool),
        step=jnp.int32(0),
    )


@partial(jax.jit, static_argnums=1)
def grow(state: State, slots: int) -> State:
    """The same continuations with room for `slots` tokens."""
    more = slots - state.seen.shape[-1]
    tail = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0)] * 3 + [(0, more), (0, 0)]), state.tail)
    return state._replace(tail=tail, seen=jnp.pad(state.seen, [(0, 0), (0, 0), (0, more)]))


@partial(jax.jit, donate_argnums=0)
def forget(state: State, tokens) -> State:
    """Takes the last `tokens` tokens of every continuation back, as if they had never been fed."""
    slots = jnp.arange(state.seen.shape[-1])[None, None]
    return state._replace(
        seen=state.seen & (slots < state.slot - tokens),
        slot=state.slot - tokens,
        position=state.position - tokens,
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def ask(
    config: ElvaConfig,
    rules: Rules,
    weights: Weights,
    front: tuple[KeysValues, ...],
    state: State,
    token_BxGxQ,
    length_BxG,
    numbers: Numbers,
) -> State:
    """Feeds a text to every continuation and chooses the first token of the answer.

    Args:
      token_BxGxQ: the texts, padded on the right; Q slots must be free.
      length_BxG: their lengths; 0 for a place that is not used.
    """
    slots, place = (
        jnp.arange(state.seen.shape[-1])[None, None],
        jnp.arange(token_BxGxQ.shape[2])[None, None],
    )
    fed_BxGxT = (slots >= state.slot) & (slots < state.slot + length_BxG[..., None])
    seen_BxGxT = state.seen | fed_BxGxT
    sees = seen_BxGxT[:, :, None] & (slots[:, :, None] <= state.slot + place[..., None])
    position = state.position[..., None] + place
    x, tail = extend(config, weights, front, state.tail, state.slot, token_BxGxQ, position, sees)
    last = jnp.maximum(length_BxG - 1, 0)[..., None, None]
    scores = logits(config, weights, jnp.take_along_axis(x, last, axis=2)[:, :, 0])
    mentioned = state.mentioned
    if rules.mode.penalise:
        row, group = (
            jnp.arange(mentioned.shape[0])[:, None, None],
            jnp.arange(mentioned.shape[1])[None, :, None],
        )
        mentioned = mentioned.at[row, group, token_BxGxQ].max(place < length_BxG[..., None])
    token = choose(
        scores[..., : rules.vocabulary], rules.mode, numbers, mentioned[..., : rules.vocabulary], 0
    )
    return State(
        tail=tail,
        seen=seen_BxGxT,
        mentioned=mentioned,
        slot=state.slot + token_BxGxQ.shape[2],
        position=state.position + length_BxG,
        token=token,
        alive=(length_BxG > 0) & ~jnp.isin(token, jnp.asarray(rules.ends)),
        step=jnp.int32(0),
    )


@partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=4)
def advance(
    config: ElvaConfig,
    rules: Rules,
    weights: Weights,
    front: tuple[KeysValues, ...],
    state: State,
    room: int,
    steps,
    numbers: Numbers,
) -> tuple[jax.Array, State]:
    """Goes on with every answer by up to `steps` tokens (at most `room`, which is static); slots must be free.

    Returns:
      int32 [B, G, room] tokens, -1 where an answer has ended, and the state behind them.
    """
    ends = jnp.asarray(rules.ends)
    slots = jnp.arange(state.seen.shape[-1])[None, None]

    def going(loop):
        done, _, state = loop
        return (done < steps) & jnp.any(state.alive)

    def body(loop):
        done, out, state = loop
        out = out.at[:, :, done].set(jnp.where(state.alive, state.token, -1))
        mentioned = state.mentioned
        if rules.mode.penalise:
            mentioned = mentioned | (
                jnp.arange(mentioned.shape[-1])[None, None] == state.token[..., None]
            )
        seen_BxGxT = state.seen | (state.alive[..., None] & (slots == state.slot))
        sees = (seen_BxGxT | (slots == state.slot))[
            :, :, None
        ]  # an ended answer's token sees itself, so that its row stays finite
        x, tail = extend(
            config,
            weights,
            front,
            state.tail,
            state.slot,
            state.token[..., None],
            state.position[..., None],
            sees,
        )
        scores = logits(config, weights, x[:, :, 0])[..., : rules.vocabulary]
        token = choose(
            scores, rules.mode, numbers, mentioned[..., : rules.vocabulary], state.step + 1
        )
        return (
            done + 1,
            out,
            State(
                tail=tail,
                seen=seen_BxGxT,
                mentioned=mentioned,
                slot=state.slot + 1,
                position=state.position + state.alive,
                token=token,
                alive=state.alive & ~jnp.isin(token, ends),
                step=state.step + 1,
            ),
        )

    out = jnp.full((*state.token.shape, room), -1, jnp.int32)
    _, out, state = jax.lax.while_loop(going, body, (jnp.int32(0), out, state))
    return out, state
