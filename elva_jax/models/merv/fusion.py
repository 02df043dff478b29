r"""Fusion of aligned encoders (arXiv 2501.01426, section 3.2): E x L tokens of width D to one set.

    attention   m_e = mean over the L tokens of X_e
                q = W_q Q + b_q,   k_e = W_k m_e + b_k
                a = softmax over e of q . k_e / sqrt(W)          W: fusion width
                X = sum over e of a_e X_e
    scalar      the same sum; a = softmax of E learned numbers
    sequence    X_1, ..., X_E one after another, E * L tokens
    channels    W_c [X_1; ...; X_E] + b_c, token by token; channels_norm: after a layer norm over
                all E * D channels

    encoder   1    2    3    4
    tokens   X_1  X_2  X_3  X_4     a_e: one weight per encoder, for all tokens of a clip
              \    |    |    /
               a_1 ... a_4 -> X

Q is one learned query, so `attention` is the weight matrix of a multi-head attention with a single
head whose value and output projections are not used; the published code has the same projections,
which the paper's formula leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from elva_jax.config.schema import ModelConfig
from elva_jax.models.layers import dense
from elva_jax.utils.arrays import AnyArray

Weights = Float32[Array, "n E"]
EXACT = jax.lax.Precision.HIGHEST  # a few products of vectors, whose result is compared and drawn
CHANNELS = ("channels", "channels_norm")
EPS = 1e-5  # that of PyTorch's LayerNorm


class Fusion(nn.Module):
    """One set of tokens from those of E encoders, as `model.merv.fusion` says."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the parameters of the chosen fusion."""
        c, merv = self.config, self.config.merv
        width, count = merv.fusion_width, len(merv.encoders)
        if merv.fusion == "attention":
            shapes = {
                "query": ((1, width), (None, None)),
                "q_kernel": ((width, width), (None, None)),
                "q_bias": ((width,), (None,)),
                "k_kernel": ((c.hidden_size, width), ("embed", None)),
                "k_bias": ((width,), (None,)),
            }
            self.attention = {name: self._param(name, *shape) for name, shape in shapes.items()}
        elif merv.fusion == "scalar":
            self.scores = self._param("scores", (count,), (None,))
        elif merv.fusion in CHANNELS:
            if merv.fusion == "channels_norm":
                self.norm = _layer_norm()
            self.proj = dense(c.hidden_size, ("embed", None), c.dtype)

    def _param(self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Any:
        """A matrix by Xavier's initializer, as in PyTorch's attention, or a vector of zeros."""
        init = nn.initializers.zeros if len(shape) == 1 else nn.initializers.xavier_uniform()
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

    def __call__(
        self, tokens: Sequence[Float[Array, "n L D"]]
    ) -> tuple[Float[Array, "n M D"], Weights | None]:
        """Fuses the tokens of n clips.

        Args:
          tokens: those of each encoder, in the order of `model.merv.encoders`.

        Returns:
          The fused tokens, M = L or E * L, and the weight of each encoder, or None where the
          fusion has none.
        """
        fusion = self.config.merv.fusion
        if fusion == "sequence":
            return jnp.concatenate(tokens, axis=1), None
        if fusion in CHANNELS:
            joined = jnp.concatenate(tokens, axis=2)
            if fusion == "channels_norm":
                joined = self.norm(joined).astype(joined.dtype)
            return self.proj(joined), None
        weights = self.weights(tokens)
        return weighted_sum(tokens, weights), weights

    def weights(self, tokens: Sequence[Float[Array, "n L D"]]) -> Weights:
        """The weight of each encoder, for fusions `attention` and `scalar`."""
        if self.config.merv.fusion == "scalar":
            shares = jax.nn.softmax(jnp.asarray(self.scores))
            return jnp.broadcast_to(shares[None], (tokens[0].shape[0], len(tokens)))
        means = [jnp.mean(x, axis=1, dtype=jnp.float32) for x in tokens]
        p = self.attention
        query = jnp.matmul(p["query"], p["q_kernel"], precision=EXACT) + p["q_bias"][None]
        return attention_weights(jnp.stack(means, axis=1), query, p["k_kernel"], p["k_bias"])


def _layer_norm() -> nn.LayerNorm:
    """Over the last axis, in float32."""
    ones, zeros = (
        nn.with_logical_partitioning(init, (None,))
        for init in (nn.initializers.ones, nn.initializers.zeros)
    )
    return nn.LayerNorm(epsilon=EPS, dtype=jnp.float32, scale_init=ones, bias_init=zeros)


def attention_weights(
    means: Float32[AnyArray, "n E D"],
    query: Float32[AnyArray, "1 W"],
    k_kernel: Float32[AnyArray, "D W"],
    k_bias: Float32[AnyArray, " W"],
) -> Weights:
    """Softmax over encoders of q . k_e / sqrt(W), in float32."""
    key_nxExW = jnp.matmul(means, k_kernel, precision=EXACT) + k_bias[None, None]
    score_nxE = jnp.einsum("new,w->ne", key_nxExW, query[0], precision=EXACT)
    score_nxE = score_nxE / query.shape[1] ** 0.5
    return jax.nn.softmax(score_nxE, axis=-1)


def weighted_sum(
    tokens: Sequence[Float[Array, "n L D"]], weights: Weights
) -> Float[Array, "n L D"]:
    """The sum of encoders by weight in float32, in the type of the tokens.

    Encoders are added one after another, so that no stack of all of them is made.
    """
    total = sum(weights[:, e, None, None] * x.astype(jnp.float32) for e, x in enumerate(tokens))
    return jnp.asarray(total, tokens[0].dtype)
