"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt32

from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.utils.arrays import AnyArray


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are decoded; greedily by default. Numbers mean the same as in transformers.

    Attributes:
      temperature: 0 takes the likeliest token; above 0, a token is drawn from logits divided by it.
      top_p: draw only among the likeliest tokens that together have this probability.
      repetition_penalty: above 1, tokens that the conversation already holds become less likely.
      seed: of the draws. The same seed gives the same answer, whatever else is in the batch.
      stop: an answer ends before the first of these strings.

    Raises:
      ConfigError: a value that is out of range.

    Example:
      >>> import elva_jax
      >>> elva_jax.Sampling(temperature=0.7, top_p=0.9, stop=(".",)).seed
      0
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers.TEMPERATURE.check("temperature", self.temperature)
        numbers.SHARE.check("top_p", self.top_p)
        numbers.POSITIVE.check("repetition_penalty", self.repetition_penalty)
        numbers.SEED.check("seed", self.seed)
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise ConfigError(f"stop={numbers.shown(self.stop)}: must be a tuple of strings")
        if not all(self.stop):
            raise ConfigError("stop: an empty string would end every answer before it begins")

    @property
    def penalizes(self) -> bool:
        """Whether the tokens that a conversation holds matter."""
        return self.repetition_penalty != 1

    def params(self, vocab_size: int, end_ids: tuple[int, ...]) -> SamplingParams:
        """The settings as compiled programs take them, for a vocabulary and its ending tokens."""
        return SamplingParams(
            temperature=np.float32(self.temperature),
            top_p=np.float32(self.top_p),
            repetition_penalty=np.float32(self.repetition_penalty),
            seed=np.uint32(self.seed % 2**32),
            draw=self.temperature > 0,
            nucleus=self.temperature > 0 and self.top_p < 1,
            penalize=self.penalizes,
            vocab_size=vocab_size,
            end_ids=end_ids,
        )


GREEDY = Sampling()


class RowSampling(NamedTuple):
    """A `Sampling` for each of R rows, without the stop strings; arrays in a compiled program."""

    temperature: Float32[AnyArray, " R"]
    top_p: Float32[AnyArray, " R"]
    repetition_penalty: Float32[AnyArray, " R"]
    seed: UInt32[AnyArray, " R"]

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> RowSampling:
        """The settings of every row."""
        return cls(
            temperature=np.asarray([row.temperature for row in rows], np.float32),
            top_p=np.asarray([row.top_p for row in rows], np.float32),
            repetition_penalty=np.asarray([row.repetition_penalty for row in rows], np.float32),
            seed=np.asarray([row.seed % 2**32 for row in rows], np.uint32),
        )


@struct.dataclass
class SamplingParams:
    """A `Sampling` inside a compiled program: numbers are traced, the other fields are static."""

    temperature: np.float32 | jax.Array
    top_p: np.float32 | jax.Array
    repetition_penalty: np.float32 | jax.Array
    seed: np.uint32 | jax.Array
    draw: bool = struct.field(pytree_node=False)
    nucleus: bool = struct.field(pytree_node=False)
    penalize: bool = struct.field(pytree_node=False)
    vocab_size: int = struct.field(pytree_node=False)  # only ids below it are chosen
    end_ids: tuple[int, ...] = struct.field(pytree_node=False)  # tokens that end an answer


def choose(
    logits: Float[AnyArray, "*B V"],
    params: SamplingParams,
    repetition_mask: Bool[AnyArray, "*B W"],
    step: Int[Array, ""] | int,
) -> Int32[Array, "*B"]:
    """Chooses the next tokens.

    Args:
      logits: of every token of the vocabulary.
      params: how to choose.
      repetition_mask: the tokens that each conversation holds; read only where
        they are penalized.
      step: number of tokens that the answer already has. All rows share the noise of a step, so
        that a row's answer does not depend on its place in the batch.
    """
    if params.penalize:
        logits = _penalized(logits, params.repetition_penalty, repetition_mask)
    if params.draw:
        logits = logits / params.temperature
        if params.nucleus:
            logits = _nucleus(logits, params.top_p)
        noise = _noise(params.seed, step, logits.shape[-1])
        logits = logits + noise.reshape((1,) * (logits.ndim - 1) + noise.shape)
    return _likeliest(logits)


def choose_rows(
    logits: Float[AnyArray, "R V"],
    sampling: RowSampling,
    repetition_mask: Bool[AnyArray, "R V"],
    step: Int[Array, " R"],
) -> Int32[Array, " R"]:
    """Chooses the next token of every row by the row's own settings, as `choose` does.

    Sorting and noise take no time while no row asks for them.
    """
    penalty, drawn = sampling.repetition_penalty[:, None], sampling.temperature > 0
    logits = _penalized(logits, penalty, repetition_mask)
    nucleus = drawn & (sampling.top_p < 1)
    likeliest = _likeliest(logits)

    def cut(logits):
        inside = _nucleus(logits, sampling.top_p[:, None])
        return jnp.where(nucleus[:, None], inside, logits)

    def draw(logits):
        logits = logits / jnp.where(drawn, sampling.temperature, 1)[:, None]
        logits = jax.lax.cond(jnp.any(nucleus), cut, lambda logits: logits, logits)
        noise = jax.vmap(partial(_noise, size=logits.shape[-1]))(sampling.seed, step)
        return _likeliest(logits + noise)

    other = jax.lax.cond(jnp.any(drawn), draw, lambda _: likeliest, logits)
    return jnp.where(drawn, other, likeliest)


def _likeliest(logits: Float[AnyArray, "*B V"]) -> Int32[Array, "*B"]:
    """The first of the largest logits, as `argmax`, which takes seven times as long on CPUs."""
    last = logits.shape[-1] - 1  # what rows of NaN get
    largest = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(largest, jnp.arange(last + 1, dtype=jnp.int32), last).min(axis=-1)


def _penalized(
    logits: Float[AnyArray, "*B V"],
    penalty: np.floating | AnyArray | float,
    repetition_mask: Bool[AnyArray, "*B V"],
) -> Float[Array, "*B V"]:
    """Logits with the tokens of the conversation made less likely."""
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(repetition_mask, lowered, logits)


def _noise(
    seed: np.integer | AnyArray | int, step: Int[Array, ""] | int, size: int
) -> Float32[Array, " V"]:
    """The noise of a step, which depends on the seed and the step alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.gumbel(key, (size,), jnp.float32)


def _nucleus(
    logits: Float[AnyArray, "*B V"], top_p: np.floating | AnyArray | float
) -> Float[Array, "*B V"]:
    """Minus infinity outside the smallest set of likeliest tokens whose probability reaches top_p.

    The likeliest token is always in the set.
    """
    order = jnp.argsort(-logits, axis=-1)
    probability = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    inside = jnp.cumsum(probability, axis=-1) - probability < top_p
    back = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(inside, back, axis=-1), logits, -jnp.inf)
