"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are decoded; the default is greedy. The numbers mean what they mean in transformers."""

    temperature: float = (
        0.0  # 0: the likeliest token; else logits are divided by it and a token is drawn
    )
    top_p: float = 1.0  # only the likeliest tokens that together have this probability are drawn
    repetition_penalty: float = (
        1.0  # above 1: tokens that the conversation already holds become less likely
    )
    seed: int = (
        0  # of the draws: the same seed gives the same answer, whatever else is in the batch
    )
    stop: tuple[str, ...] = ()  # an answer ends before the first of these strings

    def __post_init__(self):
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise ConfigError(
                f"repetition_penalty={self.repetition_penalty}: must be above 0; 1 is none"
            )
        if not all(self.stop):
            raise ConfigError("stop: an empty string would end every answer before it begins")

    @property
    def mode(self) -> Mode:
        """What of it a program must be compiled for."""
        return Mode(
            self.temperature > 0,
            self.temperature > 0 and self.top_p < 1,
            self.repetition_penalty != 1,
        )

    @property
    def numbers(self) -> Numbers:
        """The rest, which one program takes as it comes."""
        values = (self.temperature, self.top_p, self.repetition_penalty)
        return Numbers(*(np.float32(value) for value in values), np.uint32(self.seed % 2**32))


class Mode(NamedTuple):
    """Static: which steps of `choose` there are."""

    draw: bool
    nucleus: bool
    penalise: bool


class Numbers(NamedTuple):
    """The numbers of a `Sampling`."""

    temperature: np.float32
    top_p: np.float32
    repetition_penalty: np.float32
    seed: np.uint32


def choose(
    logits_xV: jax.Array, mode: Mode, numbers: Numbers, mentioned_xV: jax.Array, step
) -> jax.Array:
    """int32 [...]: the next tokens.

    Args:
      logits_xV: float32 [..., V].
      mode, numbers: of the `Sampling`.
      mentioned_xV: bool [..., V], the tokens that each conversation already holds; read only where they are penalised.
      step: how many tokens of the answer there are already. All rows share the noise of a step, so that a row's answer does not depend
        on its place in the batch.
    """
    if mode.penalise:
        penalty = numbers.repetition_penalty
        logits_xV = jnp.where(
            mentioned_xV,
            jnp.where(logits_xV > 0, logits_xV / penalty, logits_xV * penalty),
            logits_xV,
        )
    if mode.draw:
        logits_xV = logits_xV / numbers.temperature
        if mode.nucleus:
            logits_xV = _nucleus(logits_xV, numbers.top_p)
        noise_V = jax.random.gumbel(
            jax.random.fold_in(jax.random.key(numbers.seed), step),
            logits_xV.shape[-1:],
            jnp.float32,
        )
        logits_xV = logits_xV + noise_V.reshape((1,) * (logits_xV.ndim - 1) + noise_V.shape)
    return jnp.argmax(logits_xV, axis=-1).astype(jnp.int32)


def _nucleus(logits_xV: jax.Array, top_p) -> jax.Array:
    """Minus infinity outside the smallest set of likeliest tokens whose probability reaches top_p; the likeliest is always in it."""
    order = jnp.argsort(-logits_xV, axis=-1)
    probability = jnp.take_along_axis(jax.nn.softmax(logits_xV, axis=-1), order, axis=-1)
    inside = jnp.cumsum(probability, axis=-1) - probability < top_p
    return jnp.where(
        jnp.take_along_axis(inside, jnp.argsort(order, axis=-1), axis=-1), logits_xV, -jnp.inf
    )
