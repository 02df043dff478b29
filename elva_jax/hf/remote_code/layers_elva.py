"""The layers of ELVA's decoder: patch embedding, RoPE, attention."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm, eager_attention_forward

from .configuration_elva import ElvaConfig

STRETCHES = 4  # RoPE is scaled by 1, 2, 4 and 8, for sequences of as many times the longest one


class ElvaPatchEmbedding(nn.Module):
    """Pixels to visual tokens of the decoder's width (arXiv 2503.18422, section 3.1).

    To the learned `<FRAME>` and `<LINE>` vectors, attention over the patches of the frame or row is
    added; both share one set of query, key and value matrices, without an output matrix.
    """

    def __init__(self, config: ElvaConfig):
        super().__init__()
        width = config.patch_width
        self.heads, self.attends = config.patch_heads, config.patch_embed == "video"
        self.pixel_mean, self.pixel_std = config.pixel_mean, config.pixel_std
        self.proj = nn.Linear(config.patch_size**2 * 3, width)
        self.frame_token = nn.Parameter(torch.zeros(width))
        self.line_token = nn.Parameter(torch.zeros(width))
        if self.attends:
            self.q_proj = nn.Linear(width, width, bias=False)
            self.k_proj = nn.Linear(width, width, bias=False)
            self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self,
        patches: torch.Tensor,
        is_frame: torch.Tensor,
        is_patch: torch.Tensor,
        is_line: torch.Tensor,
    ) -> torch.Tensor:
        """[V, D] of the V visual tokens, sequence by sequence.

        Args:
          patches: uint8 [M, P*P*3] of all M patch tokens in order.
          is_frame: bool [B, S], the `<FRAME>` tokens.
          is_patch: bool [B, S], the patches.
          is_line: bool [B, S], the `<LINE>` tokens.
        """
        pixels = patches.float() / (255 * self.pixel_std) - self.pixel_mean / self.pixel_std
        x = self.proj(pixels.to(self.proj.weight.dtype))
        is_frame, is_patch, is_line = is_frame.flatten(), is_patch.flatten(), is_line.flatten()
        frame_of = is_frame.cumsum(0)[is_patch] - 1  # <FRAME> opens a frame
        line_of = is_line.cumsum(0)[is_patch]  # <LINE> closes a row
        frames = self.frame_token.expand(int(is_frame.sum()), -1)
        lines = self.line_token.expand(int(is_line.sum()), -1)
        if self.attends:
            key, value = (
                self.k_proj(x).unflatten(-1, (self.heads, -1)),
                self.v_proj(x).unflatten(-1, (self.heads, -1)),
            )
            frames = frames + self._attend(self.frame_token, key, value, frame_of, len(frames))
            lines = lines + self._attend(self.line_token, key, value, line_of, len(lines))
        out = x.new_zeros(len(is_patch), x.shape[-1])
        for chosen, values in ((is_patch, x), (is_frame, frames), (is_line, lines)):
            out = out.index_copy(0, chosen.nonzero()[:, 0], values.to(out.dtype))
        return self.out_proj(out[is_frame | is_patch | is_line])

    def _attend(self, token, key_MxHxF, value_MxHxF, group_M, groups: int) -> torch.Tensor:
        """float32 [groups, E]: attention of the token's query over the patches of each group."""
        query_HxF = self.q_proj(token).unflatten(-1, (self.heads, -1))
        score_MxH = (key_MxHxF * query_HxF).float().sum(-1) * key_MxHxF.shape[-1] ** -0.5
        index = group_M[:, None].expand_as(score_MxH)
        highest = (
            score_MxH.detach()
            .new_zeros(groups, self.heads)
            .scatter_reduce(0, index, score_MxH.detach(), "amax", include_self=False)
        )
        weight_MxH = (score_MxH - highest[group_M]).exp()
        total = weight_MxH.new_zeros(groups, self.heads).index_add(0, group_M, weight_MxH)
        weight_MxH = weight_MxH / total[group_M]
        attended = (weight_MxH[..., None] * value_MxHxF.float()).flatten(1)
        return attended.new_zeros(groups, attended.shape[1]).index_add(0, group_M, attended)


class ElvaRotaryEmbedding(nn.Module):
    """RoPE in float32. Frequencies are plain numbers, so that no cast of the model rounds them."""

    def __init__(self, config: ElvaConfig):
        super().__init__()
        self.tables = [rope_frequencies(config, stretch) for stretch in range(STRETCHES)]
        self.frequencies, self.factor = self.tables[0]

    @torch.no_grad()
    def forward(
        self, position: torch.Tensor, stretch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [B, S, head_dim / 2] of positions [B, S], for rows of any stretch [B]."""
        frequencies, factors = zip(*self.tables, strict=True)
        frequency, factor = (
            torch.tensor(table, dtype=torch.float32, device=position.device)[stretch]
            for table in (frequencies, factors)
        )
        with torch.autocast(position.device.type, enabled=False):
            angle = position[..., None].float() * frequency[:, None]
        factor = factor[:, None, None]
        return angle.cos() * factor, angle.sin() * factor


def stretches(config: ElvaConfig, lengths: torch.Tensor) -> torch.Tensor:
    """int64 [B]: logarithms to base 2 of the factors of RoPE, for rows of `lengths` tokens.

    The next token after n tokens has the smallest factor f with n <= f * max_position_embeddings.
    """
    limits = config.max_position_embeddings * 2 ** torch.arange(STRETCHES, device=lengths.device)
    if config.rope_parameters.get("rope_type") == "dynamic":
        limits = limits[:1]
    if bool((lengths > limits[-1]).any()):
        raise ValueError(
            f"{int(lengths.max())} tokens: the model's longest sequence is"
            f" {config.max_position_embeddings}, or {int(limits[-1])} with RoPE scaled as far as it"
            " goes; use fewer or smaller frames"
        )
    return (lengths[:, None] > limits).sum(1)


def rope_frequencies(config: ElvaConfig, stretch: int = 0) -> tuple[list[float], float]:
    """Inverse frequencies [head_dim / 2] and the factor on cos and sin.

    For longer sequences a scaling becomes stronger; without one, YaRN is used.
    """
    rope, dim = config.rope_parameters, config.head_dim
    kind, theta, factor = (
        rope.get("rope_type", "default"),
        float(rope["rope_theta"]),
        float(rope.get("factor") or 1.0),
    )
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if stretch and kind == "default":
        kind, factor, original = "yarn", 1.0, config.max_position_embeddings
    factor *= 2**stretch if kind != "dynamic" else 1
    if kind == "dynamic":
        stretch = max(config.max_position_embeddings, original) / original
        theta *= (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    plain = 1.0 / theta**exponent
    if kind == "linear":
        plain = plain / factor
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        rotations = original * plain / (2 * math.pi)
        kept = ((rotations - low) / (high - low)).clamp(0, 1)
        plain = plain / factor * (1 - kept) + plain * kept
    if kind != "yarn":
        return plain.tolist(), 1.0

    def dimension(rotations):  # that rotates this often over the trained context
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(rope.get("beta_fast") or 32.0)), 0)
    high = min(math.ceil(dimension(rope.get("beta_slow") or 1.0)), dim - 1)
    ramp = (
        (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low)
        / (high - low if high != low else 0.001)
    ).clamp(0, 1)
    attention = rope.get("attention_factor")
    if attention is None:
        attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return (plain / factor * ramp + plain * (1 - ramp)).tolist(), attention


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates queries or keys [B, H, S, head_dim] by angles [B, S, head_dim / 2], in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class ElvaAttention(nn.Module):
    """Qwen2's grouped-query attention, with any head width and optional biases."""

    def __init__(self, config: ElvaConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        inner, kv_inner = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_inner, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_inner, bias=config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, attention_mask, past_key_values=None):
        query, key, value = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        out, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling
        )
        return self.o_proj(out.flatten(2)), weights


class ElvaDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: ElvaConfig, layer_idx: int):
        super().__init__()
        self.self_attn = ElvaAttention(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, cos, sin, attention_mask, past_key_values=None):
        attended, weights = self.self_attn(
            self.input_layernorm(x), cos, sin, attention_mask, past_key_values
        )
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), weights
