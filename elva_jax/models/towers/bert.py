"""BERT (arXiv 1810.04805), the text tower that a teacher is pre-trained against (ELVA's Table 4).

    x <- norm(word + position + token type)
    x <- norm1(x + out(attention(query(x), key(x), value(x))))      over the caption's own tokens
    x <- norm2(x + fc2(gelu(fc1(x))))

Norms come after the sums, unlike in the vision towers. The mathematics is that of transformers'
`BertModel` without dropout; the parameters of all blocks are stacked (`towers.common`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from elva_jax.config.text_schema import TextTowerConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    HEADS,
    Params,
    ParamTable,
    from_heads,
    layer_norm,
    linear,
    run_blocks,
    to_heads,
)
from elva_jax.models.towers.encoder import ACTIVATIONS, Activation
from elva_jax.ops.attention.cudnn import small_attention
from elva_jax.utils.arrays import AnyArray

NORMAL = nn.initializers.normal(0.02)


class TextFeatures(NamedTuple):
    """Features of n texts of T tokens."""

    last: Float[Array, "n T C"]  # after the last block; undefined at padding
    pooled: Float[Array, "n C"]  # one vector per text, by `text_tower.pooling`


class Bert(nn.Module):
    """The encoder, with its pooler where `text_tower.pooling` is pooler."""

    config: TextTowerConfig
    vocab_size: int
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(
        self, token_ids: Int[AnyArray, "n T"], mask: Bool[AnyArray, "n T"]
    ) -> TextFeatures:
        """Encodes texts that begin with [CLS]; where `mask` is False, there is padding.

        Raises:
          ConfigError: more tokens than positions, or heads that do not divide the width.
        """
        c, length, width = self.config, token_ids.shape[1], self.config.hidden_size
        if length > c.max_position:
            raise ConfigError(
                f"BERT was given {length} tokens; text_tower.max_position allows {c.max_position}"
            )
        params = ParamTable(self)
        table = params.add("token_embedding", (self.vocab_size, width), ("vocab", "embed"), NORMAL)
        position = params.add(
            "position_embedding", (c.max_position, width), (None, "embed"), NORMAL
        )
        types = params.add("type_embedding", (c.token_types, width), (None, "embed"), NORMAL)
        params.norm("embedding_norm", width)
        table = nn.with_logical_constraint(jnp.asarray(table), ("vocab", None))  # see `Qwen2.embed`
        x = table[token_ids] + position[None, :length] + types[None, :1]
        x = layer_norm(x, params, "embedding_norm", c.norm_eps).astype(self.dtype)
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        last = BertLayers(c, name="layers")(x, mask)
        return TextFeatures(last, self._pool(last, mask, params))

    def _pool(
        self, last: Float[Array, "n T C"], mask: Bool[AnyArray, "n T"], params: ParamTable
    ) -> Float[Array, "n C"]:
        """One vector per text; a text without a token has zeros as its mean."""
        if self.config.pooling == "mean":
            weight = mask.astype(jnp.float32)[:, :, None]
            total = jnp.sum(jnp.where(mask[:, :, None], last, 0) * weight, axis=1)
            return total / jnp.maximum(jnp.sum(weight, axis=1), 1)
        if self.config.pooling == "cls":
            return last[:, 0]
        width = self.config.hidden_size
        params.dense("pooler", (width, width), ("embed", None), NORMAL)
        return jnp.tanh(linear(last[:, 0], params, "pooler"))


class BertLayers(nn.Module):
    """The stack of blocks."""

    config: TextTowerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "n T C"], mask: Bool[AnyArray, "n T"]
    ) -> Float[Array, "n T C"]:
        """The last block's output."""
        c, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        if width % c.num_heads:
            raise ConfigError(
                f"text_tower.hidden_size {width} does not divide into"
                f" text_tower.num_heads {c.num_heads}"
            )
        per_head = (c.num_heads, width // c.num_heads)
        params = ParamTable(self, c.num_layers)
        for name in ("query", "key", "value"):
            params.dense(name, (width, *per_head), ("embed", *HEADS), NORMAL)
        params.dense("out", (*per_head, width), (*HEADS, "embed"), NORMAL, contracted=2)
        params.norm("norm1", width)
        params.dense("fc1", (width, inner), ("embed", "mlp"), NORMAL)
        params.dense("fc2", (inner, width), ("mlp", "embed"), NORMAL)
        params.norm("norm2", width)
        activation = ACTIVATIONS[c.activation]
        return run_blocks(
            partial(block, mask=jnp.asarray(mask), activation=activation, eps=c.norm_eps), x, params
        )


def block(
    x: Float[Array, "n T C"],
    params: Params,
    *,
    mask: Bool[Array, "n T"],
    activation: Activation,
    eps: float,
) -> Float[Array, "n T C"]:
    """One post-norm block with the parameters of one layer."""
    query, key, value = (to_heads(x, params, name) for name in ("query", "key", "value"))
    attended = small_attention(query, key, value, mask[:, None, None, :])
    x = layer_norm(x + from_heads(attended, params), params, "norm1", eps)
    inner = activation(linear(x, params, "fc1"))
    return layer_norm(x + linear(inner, params, "fc2"), params, "norm2", eps)
