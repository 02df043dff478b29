"""The running batch on the device: R slots, each a question and its answer after some prefix.

    pool    P prefixes   [P, K, C, Dh]   read only; prefix p serves the slots r with row[r] == p
    slots   R suffixes   [R, K, T, Dh]   written from `used[r]` on, each at its own place;
                         their keys are [R, K, Dh, T]

The prefix of a video is attended to by all of its slots in one product and without a copy: the
queries, which are small, are gathered to [P, G] (slot r at row[r], place[r]) and back.

    `feed` runs questions after their prefix, `put` gives them slots, `advance` decodes all slots
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.kv_cache import LOW, PrefixCache, append_tokens, empty_suffix, split_heads
from elva_jax.inference.long_context import row_cos_sin
from elva_jax.inference.params import Weights, logits, text_embeddings
from elva_jax.inference.sampling import RowSampling, choose_rows
from elva_jax.models.qwen2 import DecoderLayer
from elva_jax.utils.arrays import AnyArray

MOST_STEPS = 32  # tokens per dispatch


class KV(NamedTuple):
    """Keys and values of every slot in one decoder layer.

    Keys are transposed: on CPUs, scores of few queries take a third of the time so.
    """

    k: Float[Array, "R K Dh T"]
    v: Float[Array, "R K T Dh"]


class Slots(NamedTuple):
    """The contents of R slots."""

    suffix: tuple[KV, ...]  # of every layer
    repetition_mask: Bool[Array, "R V"]  # tokens that the conversation holds
    sampling: RowSampling  # [R]
    used: Int32[Array, " R"]  # tokens in the suffix; the next one is written there
    position: Int32[Array, " R"]  # RoPE position of the next token
    token: Int32[Array, " R"]  # the next token of the suffix, which the answer has already
    stretch: Int32[Array, " R"]  # how RoPE is scaled (`long_context`)
    step: Int32[Array, " R"]  # tokens of the answer
    left: Int32[Array, " R"]  # tokens that the answer may still get
    alive: Bool[Array, " R"]  # whether the answer continues
    ended: Bool[Array, " R"]  # whether an ending token was chosen


class Questions(NamedTuple):
    """G questions about each of B prefixes."""

    text: Int[AnyArray, "B G Q"]  # token ids, padded on the right
    length: Int[AnyArray, "B G"]
    position: Int[AnyArray, "B G"]  # of the first token
    left: Int[AnyArray, "B G"]  # tokens that each answer may still have
    step: Int[AnyArray, "B G"]  # tokens of the answer that the text ends with
    stretch: Int[AnyArray, " B"]  # how RoPE is scaled (`long_context`)


class Fed(NamedTuple):
    """Questions after their prefixes, with the first token of each answer."""

    suffix: tuple[KV, ...]  # T = Q, of every layer
    slots: Slots  # R = B * G, without suffixes


class Where(NamedTuple):
    """Which slot reads which prefix; of what is unused, every value is as good."""

    row: Int[AnyArray, " R"]  # the prefix of each slot
    place: Int[AnyArray, " R"]  # its place among the G readers of that prefix
    slot: Int[AnyArray, "P G"]  # the slot of each reader


class Static(NamedTuple):
    """The static arguments that programs are compiled for; hashable."""

    config: ModelConfig
    vocab_size: int  # only ids below it are chosen
    end_ids: tuple[int, ...]  # tokens that end an answer


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_slots(static: Static, slots: int, capacity: int) -> Slots:
    """R = `slots` unused slots of T = `capacity` tokens."""
    heads, width = static.config.num_kv_heads, static.config.head_dim

    def zeros(*shape: int) -> Float[Array, "R K _ _"]:
        return split_heads(jnp.zeros((slots, heads, *shape), static.config.dtype))

    none = jnp.zeros((slots,), jnp.int32)
    return Slots(
        suffix=tuple(
            KV(zeros(width, capacity), zeros(capacity, width))
            for _ in range(static.config.num_layers)
        ),
        repetition_mask=jnp.zeros((slots, static.vocab_size), bool),
        sampling=RowSampling(
            jnp.zeros((slots,)), jnp.ones((slots,)), jnp.ones((slots,)), none.astype(jnp.uint32)
        ),
        used=none,
        position=none,
        token=none,
        stretch=none,
        step=none,
        left=none,
        alive=none > 0,
        ended=none > 0,
    )


@partial(jax.jit, static_argnums=0)
def feed(
    static: Static,
    weights: Weights,
    prefix: tuple[PrefixCache, ...],
    questions: Questions,
    sampling: RowSampling,
    repetition_mask: Bool[AnyArray, "R V"],
) -> Fed:
    """Runs G questions about each of B prefixes and chooses the first token of each answer.

    `repetition_mask` has the tokens of prefixes and questions.
    """
    text, length, position, left, step, stretch = map(jnp.asarray, questions)
    batch, groups, queries = text.shape
    place = jnp.arange(queries)[None, None]
    filled = (place < length[..., None])[:, :, None]
    attention_mask = filled & (place[:, :, None] <= place[..., None])
    x, suffix = append_tokens(
        static.config,
        weights,
        prefix,
        empty_suffix(static.config, batch, groups, queries),
        0,
        text,
        row_cos_sin(static.config, (position[..., None] + place).reshape(batch, -1), stretch),
        attention_mask,
    )
    last = jnp.maximum(length - 1, 0)[..., None, None]
    x = jnp.take_along_axis(x, last, axis=2).reshape(batch * groups, -1)
    scores = logits(static.config, weights, x)[:, : static.vocab_size]
    step, left, length = step.ravel().astype(jnp.int32), left.ravel(), length.ravel()
    token = choose_rows(scores, sampling, repetition_mask, step)
    ended = jnp.isin(token, jnp.asarray(static.end_ids))
    slots = Slots(
        suffix=(),
        repetition_mask=_with_token(jnp.asarray(repetition_mask), token),
        sampling=RowSampling(*map(jnp.asarray, sampling)),
        used=length.astype(jnp.int32),
        position=(position.ravel() + length).astype(jnp.int32),
        token=token,
        stretch=jnp.repeat(stretch.astype(jnp.int32), groups),
        step=step + 1,
        left=left.astype(jnp.int32) - 1,
        alive=~ended & (length > 0),
        ended=ended,
    )

    def rows(leaf):
        leaf = leaf.swapaxes(1, 2)
        return split_heads(leaf.reshape(-1, *leaf.shape[2:]))

    return Fed(tuple(KV(rows(own.k).swapaxes(2, 3), rows(own.v)) for own in suffix), slots)


@partial(jax.jit, donate_argnums=0)
def put(slots: Slots, fed: Fed, index: Int[AnyArray, " N"]) -> Slots:
    """Gives the N fed questions the slots `index`; those beyond R are dropped."""

    def write(old, new):  # [R, K, T, Dh] and [N, K, Q, Dh]; or [R, K, Dh, T] and [N, K, Dh, Q]
        rows, columns = new.shape[2:]
        return split_heads(old.at[index, :, :rows, :columns].set(new, mode="drop"))

    suffix = jax.tree.map(write, slots.suffix, fed.suffix)
    bare = slots._replace(suffix=())
    rest = jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), bare, fed.slots)
    return rest._replace(suffix=suffix)


@jax.jit
def release(slots: Slots, kept: Bool[AnyArray, " R"]) -> Slots:
    """Ends the answers of the slots that are not kept."""
    return slots._replace(alive=slots.alive & kept)


@partial(jax.jit, static_argnums=2)
def rearrange(slots: Slots, source: Int[AnyArray, " R2"], capacity: int) -> Slots:
    """Slots of `capacity` tokens, each a copy of slot `source`; unused where that is negative."""
    taken = jax.tree.map(lambda leaf: leaf[jnp.maximum(source, 0)], slots)

    def resize(leaf, axis):
        more = capacity - leaf.shape[axis]
        if more <= 0:
            return split_heads(jax.lax.slice_in_dim(leaf, 0, capacity, axis=axis))
        return split_heads(jnp.pad(leaf, [(0, more if each == axis else 0) for each in range(4)]))

    suffix = tuple(KV(resize(own.k, 3), resize(own.v, 2)) for own in taken.suffix)
    return taken._replace(suffix=suffix, alive=taken.alive & (source >= 0))


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def advance(
    static: Static,
    weights: Weights,
    pool: tuple[PrefixCache, ...],
    slots: Slots,
    where: Where,
    steps: Int[AnyArray, ""] | int,
) -> tuple[Int32[Array, "R N"], Bool[Array, " R"], Bool[Array, " R"], Slots]:
    """Continues every answer by up to `steps` tokens, at most N = MOST_STEPS.

    Args:
      static: the model.
      weights: its parameters.
      pool: P prefixes.
      slots: is used up.
      where: the prefix of each slot.
      steps: tokens to decode.

    Returns:
      The new tokens, -1 where there are none; which answers continue; which had an ending token;
      the slots after it.
    """

    def unfinished(loop):
        done, _, slots = loop
        return (done < steps) & jnp.any(slots.alive)

    def step(loop):
        done, out, slots = loop
        x, suffix = _run_token(static.config, weights, pool, slots, where)
        scores = logits(static.config, weights, x[:, 0])[:, : static.vocab_size]
        token = choose_rows(scores, slots.sampling, slots.repetition_mask, slots.step)
        ending = jnp.isin(token, jnp.asarray(static.end_ids))
        # One token beyond the limit is looked at: an answer that ends there is complete.
        said = slots.alive & ~ending & (slots.left > 0)
        alive = slots.alive.astype(jnp.int32)
        slots = Slots(
            suffix=suffix,
            repetition_mask=_with_token(slots.repetition_mask, token),
            sampling=slots.sampling,
            used=slots.used + alive,
            position=slots.position + alive,
            token=token,
            stretch=slots.stretch,
            step=slots.step + alive,
            left=slots.left - said,
            alive=said,
            ended=jnp.where(slots.alive, ending, slots.ended),
        )
        return done + 1, out.at[:, done].set(jnp.where(said, token, -1)), slots

    out = jnp.full((len(slots.used), MOST_STEPS), -1, jnp.int32)
    _, out, slots = jax.lax.while_loop(unfinished, step, (jnp.int32(0), out, slots))
    return out, slots.alive, slots.ended, slots


def _run_token(
    config: ModelConfig, weights: Weights, pool: tuple[PrefixCache, ...], slots: Slots, where: Where
) -> tuple[Float[Array, "R 1 D"], tuple[KV, ...]]:
    """Runs the next token of every slot through the decoder."""
    x = text_embeddings(config, weights, slots.token[:, None])
    cos, sin = row_cos_sin(config, slots.position[:, None], slots.stretch)
    layer = DecoderLayer(config, parent=None)

    # Within a program it is traced and lowered once for all layers of the same shapes.
    @jax.jit
    def run_layer(params, x, prefix, own):
        written: list[KV] = []

        def attend(q, k, v):
            out, new = pooled_attention(q, k, v, prefix, own, slots.used, where)
            written.append(new)
            return out

        x, _ = layer.apply({"params": params}, x, cos, sin, attend)
        return x, written[0]

    written = []
    for params, prefix, own in zip(weights.layers, pool, slots.suffix, strict=True):
        x, new = run_layer(params, x, prefix, own)
        written.append(new)
    return x, tuple(written)


def pooled_attention(
    q: Float[Array, "R 1 H Dh"],
    k: Float[Array, "R 1 K Dh"],
    v: Float[Array, "R 1 K Dh"],
    prefix: PrefixCache,
    own: KV,
    used: Int[Array, " R"],
    where: Where,
) -> tuple[Float[Array, "R 1 H Dh"], KV]:
    """Attention of one new token per slot to the slot's prefix and to its own suffix.

    The new keys and values are written at `used`. Formula and types are those of
    `kv_cache.grouped_attention`. Returns the attended values and the suffixes with the new token.
    """
    slots, _, heads, width = q.shape
    kv_heads, capacity = k.shape[2], own.v.shape[2]
    share, (rows, groups) = heads // kv_heads, where.slot.shape

    def write(old, new, axis):
        place = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))
        return split_heads(place(old, split_heads(new.astype(old.dtype)), used))

    def to_pool(values):  # [R, K, share, N] -> [P, K, G * share, N]
        readers = values[where.slot].transpose(0, 2, 1, 3, 4)
        return readers.reshape(rows, kv_heads, groups * share, values.shape[-1])

    own = KV(write(own.k, k.transpose(0, 2, 3, 1), 3), write(own.v, v.swapaxes(1, 2), 2))
    grouped = q.reshape(slots, kv_heads, share, width) * width**-0.5
    before = jnp.einsum(
        "pknd,pkcd->pknc", to_pool(grouped), prefix.k, preferred_element_type=jnp.float32
    )
    before = jnp.where(prefix.valid[:, None, None], before, LOW)
    after = jnp.einsum("rksd,rkdt->rkst", grouped, own.k, preferred_element_type=jnp.float32)
    after = jnp.where((jnp.arange(capacity)[None] <= used[:, None])[:, None, None], after, LOW)
    # The long part stays where its prefix is, and only the suffix's scores move.
    scores = jnp.concatenate([before, to_pool(after)], axis=-1)
    weight = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    length = prefix.k.shape[2]
    over = jnp.einsum("pknc,pkcd->pknd", weight[..., :length], prefix.v)

    def to_slots(values):  # [P, K, G * share, ...] -> [R, K, share, ...]
        split = values.reshape(rows, kv_heads, groups, share, -1).transpose(0, 2, 1, 3, 4)
        return split[where.row, where.place]

    out = to_slots(over)
    out += jnp.einsum("rkst,rktd->rksd", to_slots(weight[..., length:]), own.v)
    return out.reshape(q.shape), own


def _with_token(mask: Bool[Array, "R V"], token: Int[Array, " R"]) -> Bool[Array, "R V"]:
    return mask | (jnp.arange(mask.shape[-1])[None] == token[:, None])
