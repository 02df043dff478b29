"""The Qwen2 decoder: RMSNorm, grouped-query attention with RoPE, SwiGLU. All layers' parameters are stacked in one subtree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from elva_jax.config.schema import LoraConfig, ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models import lora
from elva_jax.ops import attention as attention_ops
from elva_jax.ops import linear, rope
from elva_jax.parallel.sharding import activation_spec

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("query", "key", "value", "attended"),
}
UNROLL_UP_TO = 8  # layers; a longer stack is a loop, so that compile time does not grow with it

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _normal(*axes: str | None):
    return nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)


def rms_norm(config: ModelConfig, name: str | None = None) -> nn.RMSNorm:
    """The norm of the decoder, in float32."""
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    return nn.RMSNorm(
        epsilon=config.rms_norm_eps, dtype=jnp.float32, scale_init=scale_init, name=name
    )


def rope_scaling(config: ModelConfig) -> rope.RopeScaling:
    """The RoPE extension that the keys `rope_*` describe."""
    return rope.RopeScaling(
        config.rope_scaling, config.rope_factor, config.rope_original_max_position
    )


def rope_cos_sin(
    config: ModelConfig, position_BxS: jax.Array, rope_length: int = 0
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of RoPE, [B, S, Dh / 2] float32.

    `rope_length` is the sequence length that dynamic scaling counts with. By default it is `max_position`, whatever the length at hand:
    a token's keys must not depend on how examples are packed or how far an answer has come.
    """
    frequency, factor = rope.frequencies(
        config.head_dim, config.rope_theta, rope_scaling(config), rope_length or config.max_position
    )
    return rope.cos_sin(position_BxS, frequency, factor)


def vocabulary_logits(
    hidden: jax.Array, embed_tokens_VxD: jax.Array | None, lm_head_DxV: jax.Array | None
) -> jax.Array:
    """float32 logits [..., V] of normed hidden states [..., D] in the compute type; without a head the embedding table is it."""
    table, axis = (embed_tokens_VxD, 1) if lm_head_DxV is None else (lm_head_DxV, 0)
    return linear.logits(hidden, table, axis)


def vocabulary_head(params: Mapping[str, Any]) -> jax.tree_util.Partial:
    """Logits as a function of normed hidden states [B, S, D] in the compute type, from the parameters of a `Qwen2`.

    It is a tree of the one array that it reads, so that whoever runs it shard by shard can hand that to every device.
    """
    name = "lm_head" if "lm_head" in params else "embed_tokens"
    return jax.tree_util.Partial(_logits_of, {name: params[name]})


def _logits_of(tables: Mapping[str, jax.Array], hidden_BxSxD: jax.Array) -> jax.Array:
    logits = vocabulary_logits(hidden_BxSxD, tables.get("embed_tokens"), tables.get("lm_head"))
    return nn.with_logical_constraint(logits, (None, None, "vocab"))


class DecoderLayer(nn.Module):
    """One layer; kernels are [in, out], heads flattened in the order (head, head_dim)."""

    config: ModelConfig
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(
        self, x_BxSxD: jax.Array, cos_BxSxF: jax.Array, sin_BxSxF: jax.Array, attend: Attend
    ):
        """Returns the next hidden states [B, S, D] and the turned keys and the values, each [B, S, K, Dh]."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def dense(name, x, features, axes, use_bias=False):
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            y = nn.Dense(
                features,
                use_bias,
                dtype,
                kernel_init=_normal(*axes),
                bias_init=bias_init,
                dot_general=linear.dot_general,
                name=name,
            )(x)
            if lora.adapts(self.lora, name):
                y = y + lora.Lora(self.lora, features, axes, dtype, name=name + lora.SUFFIX)(x)
            return y

        def heads(name, count, axis):
            flat = dense(name, h_BxSxD, count * c.head_dim, ("embed", axis), c.attention_bias)
            split = flat.reshape(*flat.shape[:2], count, c.head_dim)
            return nn.with_logical_constraint(split, ("batch", "seq", axis, "head_dim"))

        h_BxSxD = rms_norm(c, "input_layernorm")(x_BxSxD).astype(dtype)
        q_BxSxHxDh = checkpoint_name(
            rope.rotate(heads("q_proj", c.num_heads, "heads"), cos_BxSxF, sin_BxSxF), "query"
        )
        k_BxSxKxDh = checkpoint_name(
            rope.rotate(heads("k_proj", c.num_kv_heads, "kv_heads"), cos_BxSxF, sin_BxSxF), "key"
        )
        v_BxSxKxDh = checkpoint_name(heads("v_proj", c.num_kv_heads, "kv_heads"), "value")
        attended = checkpoint_name(attend(q_BxSxHxDh, k_BxSxKxDh, v_BxSxKxDh), "attended")
        attended = attended.reshape(*attended.shape[:2], c.num_heads * c.head_dim)
        x_BxSxD = x_BxSxD + dense("o_proj", attended, c.hidden_size, ("heads", "embed"))

        h_BxSxD = rms_norm(c, "post_attention_layernorm")(x_BxSxD).astype(dtype)
        gate_BxSxM = dense("gate_proj", h_BxSxD, c.intermediate_size, ("embed", "mlp"))
        up_BxSxM = dense("up_proj", h_BxSxD, c.intermediate_size, ("embed", "mlp"))
        inner_BxSxM = nn.with_logical_constraint(
            nn.silu(gate_BxSxM) * up_BxSxM, ("batch", "seq", "mlp")
        )
        x_BxSxD = x_BxSxD + dense("down_proj", inner_BxSxM, c.hidden_size, ("mlp", "embed"))
        return nn.with_logical_constraint(x_BxSxD, ("batch", "seq", None)), (k_BxSxKxDh, v_BxSxKxDh)


class Qwen2(nn.Module):
    """Embedding table, a stack of layers that can be run in pieces, final norm and head.

    The parameters of all layers are one subtree `layers` whose leaves are [num_layers, ...]; pieces slice it, so that where a run is cut
    never shows in a checkpoint.
    """

    config: ModelConfig
    lora: LoraConfig | None = None

    def setup(self):
        c = self.config
        if c.remat != "none" and c.remat not in REMAT_POLICIES:
            raise ConfigError(
                f"model.remat: {c.remat!r} is unknown; use one of none, {', '.join(REMAT_POLICIES)}"
            )
        self.embed_tokens = self.param(
            "embed_tokens", _normal("vocab", "embed"), (c.vocab_size, c.hidden_size), jnp.float32
        )
        self.stack = self.param("layers", self._init_layers)
        self.norm = rms_norm(c)
        if not c.tie_embeddings:
            self.lm_head = self.param(
                "lm_head", _normal("embed", "vocab"), (c.hidden_size, c.vocab_size), jnp.float32
            )

    def _layer(self) -> DecoderLayer:
        return DecoderLayer(self.config, self.lora, parent=None)

    def _init_layers(self, key: jax.Array):
        x = jnp.zeros((1, 1, self.config.hidden_size), self.config.dtype)
        angle = jnp.zeros((1, 1, self.config.head_dim // 2), jnp.float32)

        def init(key):
            return self._layer().init(key, x, angle, angle, lambda q, k, v: q)["params"]

        stacked = jax.vmap(init)(jax.random.split(key, self.config.num_layers))
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "layers"})

    def embed(self, token_ids_BxS: jax.Array) -> jax.Array:
        """[B, S, D] rows of the embedding table in the compute type."""
        # Gathered over fsdp first: rows cut along D would otherwise meet a batch cut over the same devices, and XLA would gather that.
        table_VxD = nn.with_logical_constraint(self.embed_tokens, ("vocab", None))
        return table_VxD[token_ids_BxS].astype(self.config.dtype)

    def layers(
        self,
        x_BxSxD,
        position_BxS,
        segment_BxS,
        start: int,
        stop: int,
        *,
        turn_BxS=None,
        rope_length: int = 0,
    ) -> jax.Array:
        """Hidden states [B, S, D] behind layers start … stop − 1."""
        cos, sin = rope_cos_sin(self.config, position_BxS, rope_length)
        split, keys = (
            activation_spec("batch", "seq", "heads"),
            activation_spec("batch", "seq", "kv_heads"),
        )
        attend = partial(
            attention_ops.packed_attention,
            segment=segment_BxS,
            turn=turn_BxS,
            implementation=self.config.attention,
            split=split
            if split == keys
            else PartitionSpec(*split[:2], None),  # query heads stay with their key heads
        )
        layer = self._layer()

        def body(x, params):
            x, _ = layer.apply({"params": params}, x, cos, sin, attend)
            return x, None

        if self.config.remat == "none":
            unroll = self._unroll(stop - start)
        else:
            # Always a loop: otherwise XLA puts weight gradients off and keeps the activations of many layers for them (7B, stage 3: 4 times
            # the memory). Within one it cannot merge the recomputation with the original, so nothing need prevent that.
            body, unroll = (
                jax.checkpoint(body, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False),
                1,
            )
        return jax.lax.scan(body, x_BxSxD, self._slice(start, stop), unroll=unroll)[0]

    def _slice(self, start: int, stop: int):
        if not 0 <= start <= stop <= self.config.num_layers:
            raise ConfigError(
                f"layers {start} … {stop} are not within the decoder's {self.config.num_layers} layers"
            )
        if (start, stop) == (0, self.config.num_layers):
            return self.stack
        return jax.tree.map(lambda leaf: leaf[start:stop], self.stack)

    @staticmethod
    def _unroll(count: int) -> int:
        return max(count, 1) if count <= UNROLL_UP_TO else 1

    def final_norm(self, x_BxSxD: jax.Array) -> jax.Array:
        """The final norm."""
        return self.norm(x_BxSxD).astype(self.config.dtype)

    def head(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D] behind the final norm."""
        lm_head = None if self.config.tie_embeddings else self.lm_head
        logits = vocabulary_logits(hidden.astype(self.config.dtype), self.embed_tokens, lm_head)
        if logits.ndim == 3:
            logits = nn.with_logical_constraint(logits, ("batch", "seq", "vocab"))
        return logits

    def __call__(
        self, token_ids_BxS, position_BxS, segment_BxS, *, rope_length: int = 0
    ) -> jax.Array:
        """float32 logits [B, S, V] of plain text."""
        x = self.embed(token_ids_BxS)
        x = self.layers(
            x, position_BxS, segment_BxS, 0, self.config.num_layers, rope_length=rope_length
        )
        return self.head(self.final_norm(x))
