"""SigLIP (arXiv 2303.15343): ELVA's teacher (paper, section 3.3), and the text tower to train one.

    vision:  pixels -> patches + positions -> blocks -> norm -> a learned probe attends to all,
             then a residual MLP                                                        -> pooled
    text:    token ids -> embeddings + positions -> blocks -> norm -> the last position -> head

The mathematics is that of transformers' `SiglipModel`; see `towers.encoder` for the blocks. Its
GELU is by tanh; timm's SigLIP, which MERV reads, has the exact one (`teacher.activation`).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    HEADS,
    ZEROS,
    ParamTable,
    VisionFeatures,
    embed_patches,
    from_heads,
    head_dim_of,
    layer_norm,
    linear,
    position_embedding,
    to_heads,
)
from elva_jax.models.towers.encoder import ACTIVATIONS, EncoderLayers, mlp
from elva_jax.ops.attention.cudnn import small_attention
from elva_jax.utils.arrays import AnyArray

LECUN = nn.initializers.lecun_normal()


class Siglip(nn.Module):
    """Both towers, the logit scale and the logit bias."""

    config: TeacherConfig
    vocab_size: int  # of the captions' tokenizer
    dtype: str = "float32"  # compute type; parameters stay float32

    def setup(self) -> None:
        """Declares the towers and the two scalars."""
        if self.config.text_layers < 1 or self.vocab_size < 1:
            raise ConfigError(
                "a SigLIP with a text tower needs teacher.text_layers and a vocabulary size above 0"
            )
        self.vision = SiglipVision(self.config, self.dtype)
        self.text = SiglipText(self.config, self.vocab_size, self.dtype)
        # As in SigLIP's paper: most pairs are negative, so the bias starts at -10, the scale at 10.
        self.log_scale = self.param("log_scale", nn.initializers.constant(math.log(10.0)), ())
        self.bias = self.param("bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self, pixels: Float[AnyArray, "n H W 3"], token_ids: Int[AnyArray, "m T"]
    ) -> tuple[Float[Array, "n C"], Float[Array, "m C"], Float[Array, ""], Float[Array, ""]]:
        """Image and text features, not normalized, log scale and bias: for `sigmoid_loss`."""
        scale, bias = jnp.asarray(self.log_scale), jnp.asarray(self.bias)
        return self.vision(pixels).pooled, self.text(token_ids), scale, bias


class SiglipVision(nn.Module):
    """The vision tower. Its parameters are those under "vision" of a `Siglip`."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n H W 3"]) -> VisionFeatures:
        """Encodes square images of `config.image_size` pixels with values in [-1, 1].

        Pixels beyond the last whole patch are ignored. The features are transformers'
        hidden_states[-2], last_hidden_state and pooler_output.

        Raises:
          ConfigError: another image size.
        """
        c, size = self.config, self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"SigLIP was given images of shape {pixels.shape[1:]};"
                f" teacher.image_size wants {(size, size, 3)}"
            )
        params = ParamTable(self)
        x = embed_patches(params, pixels.astype(self.dtype), c)
        x = x + position_embedding(params, c.grid**2, c.hidden_size).astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = EncoderLayers(c, c.num_layers, name="layers")(x)
        params.norm("post_norm", c.hidden_size)
        last = layer_norm(x, params, "post_norm")
        return VisionFeatures(penultimate, last, SiglipHead(c, name="head")(last))


class SiglipText(nn.Module):
    """The text tower, bidirectional and pooled at the last position, as SigLIP was trained.

    Nothing is masked: padding is a token like any other.
    """

    config: TeacherConfig
    vocab_size: int
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, token_ids: Int[AnyArray, "n T"]) -> Float[Array, "n C"]:
        """Features, not normalized, of captions padded to `config.text_length` tokens.

        Raises:
          ConfigError: more tokens than positions.
        """
        c, length = self.config, token_ids.shape[1]
        if length > c.text_length:
            raise ConfigError(
                f"SigLIP was given {length} text tokens; teacher.text_length allows {c.text_length}"
            )
        params, width = ParamTable(self), c.hidden_size
        table = params.add(
            "token_embedding",
            (self.vocab_size, width),
            ("vocab", "embed"),
            nn.initializers.normal(0.02),
        )
        table = nn.with_logical_constraint(jnp.asarray(table), ("vocab", None))  # see `Qwen2.embed`
        position = position_embedding(params, c.text_length, width)[:length]
        x = (table[token_ids] + position[None]).astype(self.dtype)
        _, x = EncoderLayers(c, c.text_layers, name="layers")(x)
        params.norm("final_norm", width)
        params.add("head_kernel", (width, width), ("embed", None), LECUN)
        params.add("head_bias", (width,), (None,), ZEROS)
        return linear(layer_norm(x, params, "final_norm")[:, -1], params, "head")


class SiglipHead(nn.Module):
    """Attention pooling by one learned probe, then a residual MLP."""

    config: TeacherConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n T C"]) -> Float[Array, "n C"]:
        """One vector per image."""
        c, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        per_head = (c.num_heads, head_dim_of(c))
        params, xavier = ParamTable(self), nn.initializers.xavier_uniform
        probe = params.add("probe", (1, width), (None, "embed"), xavier())
        for name in ("query", "key", "value"):
            params.dense(name, (width, *per_head), ("embed", *HEADS), xavier(0, (1, 2)))
        params.dense("out", (*per_head, width), (*HEADS, "embed"), xavier((0, 1), 2), contracted=2)
        params.norm("norm", width)
        params.dense("fc1", (width, inner), ("embed", "mlp"), LECUN)
        params.dense("fc2", (inner, width), ("mlp", "embed"), LECUN)

        query = to_heads(jnp.asarray(probe, x.dtype)[None], params, "query")
        query = jnp.broadcast_to(query, (x.shape[0], *query.shape[1:]))
        key, value = (to_heads(x, params, name) for name in ("key", "value"))
        y = from_heads(small_attention(query, key, value)[:, 0], params)
        return y + mlp(layer_norm(y, params, "norm"), params, ACTIVATIONS[c.activation])
