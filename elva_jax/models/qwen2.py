"""The Qwen2 decoder: RMSNorm, grouped-query attention with RoPE, SwiGLU.

    x <- x + W_o attention(rope(W_q h), rope(W_k h), W_v h)           h = norm(x)
    x <- x + W_down (silu(W_gate h) * W_up h)                         h = norm(x)

The parameters of all layers are one subtree `layers` with leaves [L, ...], and a call runs any
range of them, so it never shows in a checkpoint where tokens merge:

    layers[0:2] --> merge --> layers[2:8] --> merge --> layers[8:L]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from elva_jax.config.schema import LoraConfig, ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.layers import dense, normal
from elva_jax.models.lora import Lora, adapts
from elva_jax.ops import linear, quantized, rope
from elva_jax.ops.attention import frame_attention, frame_reach, packed_attention
from elva_jax.ops.lora import SUFFIX
from elva_jax.ops.quantized import Quantized
from elva_jax.parallel.sharding import activation_spec
from elva_jax.utils.arrays import AnyArray

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("query", "key", "value", "attended"),
}
UNROLL_UP_TO = 8  # layers; a longer range is a loop, so that it compiles no longer

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
KeysAndValues = tuple[Float[Array, "B S K Dh"], Float[Array, "B S K Dh"]]


def rms_norm(config: ModelConfig, name: str | None = None) -> nn.RMSNorm:
    """The norm of the decoder, in float32."""
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    return nn.RMSNorm(
        epsilon=config.rms_norm_eps, dtype=jnp.float32, scale_init=scale_init, name=name
    )


def rope_scaling(config: ModelConfig) -> rope.RopeScaling:
    """The RoPE extension that the keys `rope_*` describe."""
    return rope.RopeScaling(
        config.rope_scaling,
        config.rope_factor,
        config.rope_original_max_position,
        low_freq_factor=config.rope_low_freq_factor,
        high_freq_factor=config.rope_high_freq_factor,
    )


def rope_cos_sin(
    config: ModelConfig, position: Int[AnyArray, "B S"], rope_length: int = 0
) -> tuple[Float32[Array, "B S F"], Float32[Array, "B S F"]]:
    """Cosine and sine of RoPE's angles.

    `rope_length` is the sequence length that dynamic scaling uses. By default it is `max_position`,
    whatever the actual length: a token's keys must not depend on how examples are packed or on how
    many tokens have been generated.
    """
    return rope.cos_sin(position, *rope_frequencies(config, rope_length))


def rope_frequencies(
    config: ModelConfig, rope_length: int = 0
) -> tuple[Float32[np.ndarray, " F"], float]:
    """RoPE's frequencies and the factor on cosine and sine; `rope_length` as in `rope_cos_sin`."""
    return rope.frequencies(
        config.head_dim, config.rope_theta, rope_scaling(config), rope_length or config.max_position
    )


def vocabulary_logits(
    hidden: Float[Array, "*batch D"],
    embed_tokens: Float[AnyArray, "V D"] | Quantized | None,
    lm_head: Float[AnyArray, "D V"] | Quantized | None,
) -> Float32[Array, "*batch V"]:
    """Logits of normed hidden states; without a head, the embedding table serves as one."""
    table, axis = (embed_tokens, 1) if lm_head is None else (lm_head, 0)
    if quantized.is_quantized(table):
        return quantized.product(hidden, table, axis, jnp.float32)
    return linear.logits(hidden, table, axis)


def vocabulary_head(params: Mapping[str, Any]) -> jax.tree_util.Partial:
    """Logits as a function of normed hidden states [B, S, D], from a `Qwen2`'s parameters.

    It is a pytree of the one array that it needs, so it can be passed to every device.
    """
    name = "lm_head" if "lm_head" in params else "embed_tokens"
    return jax.tree_util.Partial(_logits_of, {name: params[name]})


def _logits_of(
    tables: Mapping[str, jax.Array], hidden: Float[Array, "B S D"]
) -> Float32[Array, "B S V"]:
    logits = vocabulary_logits(hidden, tables.get("embed_tokens"), tables.get("lm_head"))
    return nn.with_logical_constraint(logits, (None, None, "vocab"))


def attention_split() -> PartitionSpec:
    """How the mesh in use splits rows, sequence and heads where attention is computed."""
    split = activation_spec("batch", "seq", "heads")
    if split != activation_spec("batch", "seq", "kv_heads"):
        split = PartitionSpec(*split[:2], None)  # query heads stay with their key heads
    return split


class DecoderLayer(nn.Module):
    """One layer; kernels are [in, out], heads flattened in the order (head, head_dim)."""

    config: ModelConfig
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        cos: Float32[Array, "B S F"],
        sin: Float32[Array, "B S F"],
        attend: Attend,
    ) -> tuple[Float[Array, "B S D"], KeysAndValues]:
        """The next hidden states, and the keys (after RoPE) and values that `attend` was given."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def project(name, h, features, axes, *, use_bias=False):
            bias_std = c.bias_initializer_range if name in ("q_proj", "k_proj") else 0.0
            std = {"std": c.initializer_range, "bias_std": bias_std}
            y = dense(features, axes, dtype, use_bias=use_bias, name=name, **std)(h)
            if self.lora is not None and adapts(self.lora, name):
                y = y + Lora(self.lora, features, axes, dtype, name=name + SUFFIX)(h)
            return y

        def to_heads(name, h, count, axis):
            axes, features = ("embed", axis), count * c.head_dim
            flat = project(name, h, features, axes, use_bias=c.attention_bias)
            split = flat.reshape(*flat.shape[:2], count, c.head_dim)
            return nn.with_logical_constraint(split, ("batch", "seq", axis, "head_dim"))

        h = rms_norm(c, "input_layernorm")(x).astype(dtype)
        # The names are those that remat = names keeps for the backward pass.
        q = checkpoint_name(
            rope.rotate(to_heads("q_proj", h, c.num_heads, "heads"), cos, sin), "query"
        )
        k = checkpoint_name(
            rope.rotate(to_heads("k_proj", h, c.num_kv_heads, "kv_heads"), cos, sin), "key"
        )
        v = checkpoint_name(to_heads("v_proj", h, c.num_kv_heads, "kv_heads"), "value")
        attended = checkpoint_name(attend(q, k, v), "attended")
        attended = attended.reshape(*attended.shape[:2], c.num_heads * c.head_dim)
        x = x + project("o_proj", attended, c.hidden_size, ("heads", "embed"))

        h = rms_norm(c, "post_attention_layernorm")(x).astype(dtype)
        gate = project("gate_proj", h, c.intermediate_size, ("embed", "mlp"))
        up = project("up_proj", h, c.intermediate_size, ("embed", "mlp"))
        inner = nn.with_logical_constraint(nn.silu(gate) * up, ("batch", "seq", "mlp"))
        x = x + project("down_proj", inner, c.hidden_size, ("mlp", "embed"))
        return nn.with_logical_constraint(x, ("batch", "seq", None)), (k, v)


class Qwen2(nn.Module):
    """Embedding table, a stack of layers that can be run in ranges, final norm and head."""

    config: ModelConfig
    lora: LoraConfig | None = None

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        if c.remat != "none" and c.remat not in REMAT_POLICIES:
            raise ConfigError(
                f"model.remat: {c.remat!r} is unknown; use one of none, {', '.join(REMAT_POLICIES)}"
            )
        table, std = (c.vocab_size, c.hidden_size), c.initializer_range
        init = normal("vocab", "embed", std=std)
        self.embed_tokens = self.param("embed_tokens", init, table, jnp.float32)
        self.stack = self.param("layers", self._init_layers)
        self.norm = rms_norm(c)
        if not c.tie_embeddings:
            init = normal("embed", "vocab", std=std)
            self.lm_head = self.param("lm_head", init, table[::-1], jnp.float32)

    def _layer(self) -> DecoderLayer:
        return DecoderLayer(self.config, self.lora, parent=None)

    def _init_layers(self, key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, 1, self.config.hidden_size), self.config.dtype)
        angle = jnp.zeros((1, 1, self.config.head_dim // 2), jnp.float32)

        def init(key):
            return self._layer().init(key, x, angle, angle, lambda q, k, v: q)["params"]

        stacked = jax.vmap(init)(jax.random.split(key, self.config.num_layers))
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "layers"})

    def embed(self, token_ids: Int[AnyArray, "B S"]) -> Float[Array, "B S D"]:
        """Rows of the embedding table in the compute type."""
        # The table is gathered over fsdp first. Otherwise its rows, split along D, would meet a
        # batch that is split over the same devices, and XLA would gather the batch.
        table_VxD = nn.with_logical_constraint(jnp.asarray(self.embed_tokens), ("vocab", None))
        return table_VxD[token_ids].astype(self.config.dtype)

    def layers(
        self,
        x: Float[Array, "B S D"],
        position: Int[AnyArray, "B S"],
        segment: Int[AnyArray, "B S"],
        start: int,
        stop: int,
        *,
        turn: Int[AnyArray, "B S"] | None = None,
        frame: Int[AnyArray, "B S"] | None = None,
        rope_length: int = 0,
    ) -> Float[Array, "B S D"]:
        """Hidden states after layers start … stop - 1; without `frame` there are no frames."""
        cos, sin = rope_cos_sin(self.config, position, rope_length)
        attend: Callable[..., jax.Array] = packed_attention
        if frame is not None and self.config.frame_attention == "bidirectional":
            attend = partial(frame_attention, reach=frame_reach(frame))
        attend = partial(
            attend,
            segment=segment,
            turn=turn,
            implementation=self.config.attention,
            split=attention_split(),
        )
        layer = self._layer()

        def body(x, params):
            x, _ = layer.apply({"params": params}, x, cos, sin, attend)
            return x, None

        count = stop - start
        unroll = max(count, 1) if count <= UNROLL_UP_TO else 1
        if self.config.remat != "none":
            # Always a loop: otherwise XLA delays weight gradients and keeps the activations of many
            # layers for them (7B, stage 3: 4 times the memory). Within a loop it cannot merge the
            # recomputation with the original, so prevent_cse is not needed.
            policy = REMAT_POLICIES[self.config.remat]
            body, unroll = jax.checkpoint(body, policy=policy, prevent_cse=False), 1
        return jax.lax.scan(body, x, self._slice(start, stop), unroll=unroll)[0]

    def _slice(self, start: int, stop: int) -> Mapping[str, Any]:
        if not 0 <= start <= stop <= self.config.num_layers:
            raise ConfigError(
                f"layers {start} … {stop} are not within"
                f" the decoder's {self.config.num_layers} layers"
            )
        if (start, stop) == (0, self.config.num_layers):
            return self.stack  # a slice would be a copy
        return jax.tree.map(lambda leaf: leaf[start:stop], self.stack)

    def final_norm(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Hidden states as `head` takes them."""
        return self.norm(x).astype(self.config.dtype)

    def head(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
        """Logits of hidden states after the final norm."""
        lm_head = None if self.config.tie_embeddings else self.lm_head
        logits = vocabulary_logits(hidden.astype(self.config.dtype), self.embed_tokens, lm_head)
        if logits.ndim == 3:
            logits = nn.with_logical_constraint(logits, ("batch", "seq", "vocab"))
        return logits

    def __call__(
        self,
        token_ids: Int[AnyArray, "B S"],
        position: Int[AnyArray, "B S"],
        segment: Int[AnyArray, "B S"],
        *,
        rope_length: int = 0,
    ) -> Float32[Array, "B S V"]:
        """Logits of plain text."""
        x, stop = self.embed(token_ids), self.config.num_layers
        x = self.layers(x, position, segment, 0, stop, rope_length=rope_length)
        return self.head(self.final_norm(x))
