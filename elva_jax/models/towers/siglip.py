"""SigLIP (arXiv 2303.15343): the vision tower that teaches ELVA (paper, section 3.3), and the text tower that can train one.

The mathematics is transformers' `SiglipModel`. The layers of a tower are stacked: every parameter of `layers` has a leading axis [L, ...].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    LAYER_NORM_EPS,
    add_bias,
    head_dim_of,
    layer_norm,
    linear,
    norm_params,
    param,
    patchify,
    position_embedding,
    project,
)

Params = Mapping[str, jax.Array]


class SiglipOutput(NamedTuple):
    """Vision features of n images; GG = G*G patches in row-major order."""

    penultimate: (
        jax.Array
    )  # [n, GG, C] input of the last layer, without a norm: transformers' hidden_states[-2]
    last: jax.Array  # [n, GG, C] after the last layer and the final norm: last_hidden_state
    pooled: jax.Array  # [n, C] attention-pooled: pooler_output


class Siglip(nn.Module):
    """Both towers, the logit scale and the logit bias."""

    config: TeacherConfig
    vocab_size: int  # of the captions' tokenizer
    dtype: str = "float32"  # compute type; parameters stay float32

    def setup(self):
        if self.config.text_layers < 1 or self.vocab_size < 1:
            raise ConfigError(
                "a SigLIP with a text tower needs teacher.text_layers and a vocabulary size above 0"
            )
        self.vision = SiglipVision(self.config, self.dtype)
        self.text = SiglipText(self.config, self.vocab_size, self.dtype)
        # The paper's start: most pairs are negative, so the bias begins at -10 and the scale at 10.
        self.log_scale = self.param("log_scale", nn.initializers.constant(math.log(10.0)), ())
        self.bias = self.param("bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self, pixels_nxHxWx3: jax.Array, token_ids_mxT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Image and text features [n, C], [m, C] (not normalised), log scale and bias: what `training.losses.sigmoid_loss` takes."""
        return (
            self.vision(pixels_nxHxWx3).pooled,
            self.text(token_ids_mxT),
            self.log_scale,
            self.bias,
        )


class SiglipVision(nn.Module):
    """The vision tower. Its parameters are those under "vision" of a `Siglip`."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels_nxHxWx3: jax.Array) -> SiglipOutput:
        """Encodes square images of `config.image_size` pixels, values in [-1, 1]; pixels beyond the last whole patch are ignored.

        Raises:
          ConfigError: another image size.
        """
        c, size, grid = self.config, self.config.image_size, self.config.grid
        if pixels_nxHxWx3.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"SigLIP was given images of shape {pixels_nxHxWx3.shape[1:]}; teacher.image_size wants {(size, size, 3)}"
            )
        patches = patchify(pixels_nxHxWx3.astype(self.dtype), c.patch_size, grid)
        embed_p = {
            "kernel": param(
                self, "patch_kernel", (c.patch_size**2 * 3, c.hidden_size), ("patch", "embed")
            ),
            "bias": param(
                self, "patch_bias", (c.hidden_size,), ("embed",), nn.initializers.zeros_init()
            ),
        }
        position = position_embedding(self, grid * grid, c.hidden_size)
        x = linear(patches, embed_p["kernel"], embed_p["bias"]) + position.astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = SiglipLayers(c, c.num_layers, name="layers")(x)
        last = layer_norm(x, *norm_params(self, "post_norm", c.hidden_size), LAYER_NORM_EPS)
        return SiglipOutput(penultimate, last, SiglipHead(c, name="head")(last))


class SiglipText(nn.Module):
    """The text tower: bidirectional, unmasked (padding is a token like any other), pooled at the last position, as SigLIP was trained."""

    config: TeacherConfig
    vocab_size: int
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, token_ids_nxT: jax.Array) -> jax.Array:
        """Text features [n, C], not normalised, of captions padded to `config.text_length` tokens.

        Raises:
          ConfigError: more tokens than positions.
        """
        c, length = self.config, token_ids_nxT.shape[1]
        if length > c.text_length:
            raise ConfigError(
                f"SigLIP was given {length} text tokens; teacher.text_length allows {c.text_length}"
            )
        table = param(
            self,
            "token_embedding",
            (self.vocab_size, c.hidden_size),
            ("vocab", "embed"),
            nn.initializers.normal(0.02),
        )
        table = nn.with_logical_constraint(
            table, ("vocab", None)
        )  # whole rows, as in the decoder's embedding
        position = position_embedding(self, c.text_length, c.hidden_size)[:length]
        x = (table[token_ids_nxT] + position[None]).astype(self.dtype)
        _, x = SiglipLayers(c, c.text_layers, name="layers")(x)
        x = layer_norm(x, *norm_params(self, "final_norm", c.hidden_size), LAYER_NORM_EPS)[:, -1]
        kernel = param(self, "head_kernel", (c.hidden_size, c.hidden_size), ("embed", None))
        return linear(
            x,
            kernel,
            param(self, "head_bias", (c.hidden_size,), (None,), nn.initializers.zeros_init()),
        )


class SiglipLayers(nn.Module):
    """A stack of pre-norm blocks."""

    config: TeacherConfig
    num_layers: int

    @nn.compact
    def __call__(self, x_nxTxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last block's input and output."""
        c, heads, width = self.config, self.config.num_heads, self.config.hidden_size
        head_dim = head_dim_of(c)
        params = {}

        def add(name, shape, axes, init=None):
            init = init or nn.initializers.zeros_init()
            params[name] = param(self, name, (self.num_layers, *shape), ("layers", *axes), init)

        matrix = nn.initializers.xavier_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))
        for norm in ("norm1", "norm2"):
            add(f"{norm}_scale", (width,), ("embed",), nn.initializers.ones_init())
            add(f"{norm}_bias", (width,), ("embed",))
        for name in ("query", "key", "value"):
            per_head = nn.initializers.xavier_uniform(in_axis=1, out_axis=(2, 3), batch_axis=(0,))
            add(
                f"{name}_kernel", (width, heads, head_dim), ("embed", "heads", "head_dim"), per_head
            )
            add(f"{name}_bias", (heads, head_dim), ("heads", "head_dim"))
        per_head = nn.initializers.xavier_uniform(in_axis=(1, 2), out_axis=3, batch_axis=(0,))
        add("out_kernel", (heads, head_dim, width), ("heads", "head_dim", "embed"), per_head)
        add("out_bias", (width,), ("embed",))
        add("fc1_kernel", (width, c.intermediate_size), ("embed", "mlp"), matrix)
        add("fc1_bias", (c.intermediate_size,), ("mlp",))
        add("fc2_kernel", (c.intermediate_size, width), ("mlp", "embed"), matrix)
        add("fc2_bias", (width,), ("embed",))

        def body(x, layer):
            return nn.with_logical_constraint(
                block(x, layer, LAYER_NORM_EPS), ("batch", None, "embed")
            ), None

        before, _ = jax.lax.scan(body, x_nxTxC, {name: p[:-1] for name, p in params.items()})
        after, _ = body(before, {name: p[-1] for name, p in params.items()})
        return before, after


class SiglipHead(nn.Module):
    """Attention pooling by one learned probe, then a residual MLP."""

    config: TeacherConfig

    @nn.compact
    def __call__(self, x_nxTxC: jax.Array) -> jax.Array:
        """[n, T, C] -> [n, C]."""
        c, heads, width = self.config, self.config.num_heads, self.config.hidden_size
        zeros = nn.initializers.zeros_init()
        probe = param(self, "probe", (1, width), (None, "embed"), nn.initializers.xavier_uniform())
        projected = {}
        for name, source in (
            ("query", probe.astype(x_nxTxC.dtype)[None]),
            ("key", x_nxTxC),
            ("value", x_nxTxC),
        ):
            init = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))
            kernel = param(
                self,
                f"{name}_kernel",
                (width, heads, head_dim_of(c)),
                ("embed", "heads", "head_dim"),
                init,
            )
            bias = param(
                self, f"{name}_bias", (heads, head_dim_of(c)), ("heads", "head_dim"), zeros
            )
            projected[name] = project(source, kernel, bias)
        query = jnp.broadcast_to(
            projected["query"], (x_nxTxC.shape[0], *projected["query"].shape[1:])
        )
        x = jax.nn.dot_product_attention(query, projected["key"], projected["value"])[:, 0]
        init = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)
        kernel = param(
            self, "out_kernel", (heads, head_dim_of(c), width), ("heads", "head_dim", "embed"), init
        )
        x = add_bias(
            jnp.einsum("nhd,hdc->nc", x, kernel.astype(x.dtype)),
            param(self, "out_bias", (width,), ("embed",), zeros),
        )
        y = layer_norm(x, *norm_params(self, "norm", width), LAYER_NORM_EPS)
        fc1 = param(self, "fc1_kernel", (width, c.intermediate_size), ("embed", "mlp"))
        y = nn.gelu(
            linear(y, fc1, param(self, "fc1_bias", (c.intermediate_size,), ("mlp",), zeros)),
            approximate=True,
        )
        fc2 = param(self, "fc2_kernel", (c.intermediate_size, width), ("mlp", "embed"))
        return x + linear(y, fc2, param(self, "fc2_bias", (width,), ("embed",), zeros))


def block(x_nxTxC: jax.Array, p: Params, eps: float) -> jax.Array:
    """One pre-norm transformer block with the parameters of one layer: unmasked attention, then a tanh-GELU MLP."""
    y = layer_norm(x_nxTxC, p["norm1_scale"], p["norm1_bias"], eps)
    query, key, value = (
        project(y, p[f"{name}_kernel"], p[f"{name}_bias"]) for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(query, key, value)
    x = x_nxTxC + add_bias(
        jnp.einsum("nthd,hdc->ntc", y, p["out_kernel"].astype(y.dtype)), p["out_bias"]
    )
    y = layer_norm(x, p["norm2_scale"], p["norm2_bias"], eps)
    y = nn.gelu(linear(y, p["fc1_kernel"], p["fc1_bias"]), approximate=True)
    return x + linear(y, p["fc2_kernel"], p["fc2_bias"])
