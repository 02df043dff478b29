"""ELVA in PyTorch: patch embedding, Qwen2 decoder, token merging, and generation with a cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm, eager_attention_forward

from .configuration_elva import ElvaConfig
from .merging_elva import Tokens, merge_tokens

STRETCHES = 4  # RoPE is scaled by 1, 2, 4 and 8, for sequences of as many times the longest one


@dataclass
class ElvaModelOutput(BaseModelOutputWithPast):
    """Output of the decoder. After merging, sequences are shorter and padded on the left.

    Args:
      token_index: int64 [B, C], the input token of each output (the last, if it is a mean of
        several); -1 for padding.
      token_size: float32 [B, C], the number of input tokens in each output.
    """

    token_index: torch.LongTensor | None = None
    token_size: torch.FloatTensor | None = None


@dataclass
class ElvaCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` whose `logits` belong to the tokens in `token_index`."""

    token_index: torch.LongTensor | None = None
    token_size: torch.FloatTensor | None = None


class ElvaCache(DynamicCache):
    """Keys and values, fewer of them after every merging layer, and masks that exclude padding.

    It keeps the inputs too: where a sequence becomes longer than RoPE is scaled for, all of it is
    run again.
    """

    def __init__(self, config: ElvaConfig):
        super().__init__(config=config)
        self.seen = 0  # input tokens, before any merging
        self.masks: dict[int, torch.Tensor] = {}  # first layer of a block -> bool [B, T]
        self.inputs: dict[str, torch.Tensor | None] = {}  # of all calls; their first axis is B
        self.stretch: torch.Tensor | None = None  # int64 [B], how RoPE is scaled

    def keep_inputs(self, input_ids, pixel_values, tube_ids):
        """Adds the inputs of a call; without ids nothing can be run again."""
        if self.seen and self.inputs.get("input_ids") is not None and input_ids is not None:
            input_ids = torch.cat([self.inputs["input_ids"], input_ids], dim=1)
            if self.inputs["tube_ids"] is not None:
                more = input_ids.shape[1] - self.inputs["tube_ids"].shape[1]
                tube_ids = nn.functional.pad(self.inputs["tube_ids"], (0, more), value=-1)
            pixel_values = self.inputs["pixel_values"]
        elif self.seen:
            input_ids = None
        self.inputs = {"input_ids": input_ids, "pixel_values": pixel_values, "tube_ids": tube_ids}

    def extended_mask(self, start: int, valid: torch.Tensor) -> torch.Tensor:
        """Appends the mask [B, S] of new tokens to that of the block at `start`: [B, T + S]."""
        if start in self.masks:
            valid = torch.cat([self.masks[start], valid], dim=1)
        self.masks[start] = valid
        return valid

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reset(self):
        super().reset()
        self.seen, self.masks, self.inputs, self.stretch = 0, {}, {}, None

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self.batch_select_masks(beam_idx)

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.batch_select_masks(indices)

    def batch_select_masks(self, indices):
        self._each_row(lambda leaf: leaf[indices.to(leaf.device)])

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        self._each_row(lambda leaf: leaf.repeat_interleave(repeats, dim=0))

    def _each_row(self, change):
        self.masks = {start: change(mask) for start, mask in self.masks.items()}
        self.inputs = {
            name: None if value is None else change(value) for name, value in self.inputs.items()
        }
        self.stretch = None if self.stretch is None else change(self.stretch)

    def crop(self, tokens_to_remove):
        """Removes the last -n tokens, which must be text, because text never merges."""
        super().crop(tokens_to_remove)
        if tokens_to_remove < 0:
            self.seen += tokens_to_remove
            self.masks = {start: mask[:, :tokens_to_remove] for start, mask in self.masks.items()}
            for name in ("input_ids", "tube_ids"):
                if self.inputs.get(name) is not None:
                    self.inputs[name] = self.inputs[name][:, :tokens_to_remove]


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


class ElvaPreTrainedModel(PreTrainedModel):
    config: ElvaConfig
    config_class = ElvaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("ElvaDecoderLayer", "ElvaPatchEmbedding")
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ElvaPatchEmbedding):
            init.normal_(module.frame_token, std=self.config.initializer_range)
            init.normal_(module.line_token, std=self.config.initializer_range)


class ElvaModel(ElvaPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.patch_embed = ElvaPatchEmbedding(config)
        self.layers = nn.ModuleList(
            [ElvaDecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ElvaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ElvaCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tube_ids: torch.LongTensor | None = None,
        merging: bool | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ElvaModelOutput:
        """Runs new tokens through the decoder.

        Args:
          input_ids: [B, S], with the config's frame, patch and line ids at visual tokens.
          attention_mask: [B, T], 0 at padding; T includes the tokens in the cache.
          position_ids: [B, S], the number of earlier tokens in the sequence (before merging); by
            default from `attention_mask`.
          past_key_values: the cache of an earlier call.
          inputs_embeds: [B, S, D] instead of `input_ids`, for text only.
          pixel_values: uint8 [B, N, P*P*3], the patches of each sequence in the order of its patch
            tokens.
          tube_ids: [B, S]: tokens at one grid position, in frames of the same grid of the same
            video, share an id; -1 for all others. Only needed for merging, which never joins tokens
            of different calls.
          merging: whether the config's merging layers act; by default as the config says.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        merging = self.config.merging if merging is None else merging
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        cache = self._cache(past_key_values) if use_cache or past_key_values is not None else None
        stretch, whole = self._stretch(input_ids, inputs_embeds, attention_mask, cache)
        if cache is not None:
            cache.keep_inputs(input_ids, pixel_values, tube_ids)
        if whole:
            return self._run_again(
                cache, attention_mask, merging, output_hidden_states, output_attentions
            )
        tokens = self._enter(
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            pixel_values,
            tube_ids,
            merging,
        )
        states, attentions = [], []
        for start, stop, rule in self._blocks():
            if rule is not None and merging and pixel_values is not None:
                tokens = merge_tokens(tokens, *rule, self.config.merge_survivor)
            seen = tokens.valid if cache is None else cache.extended_mask(start, tokens.valid)
            mask = self._mask(tokens, seen)
            cos, sin = self.rotary_emb(tokens.position, stretch)
            for layer in self.layers[start:stop]:
                states.append(tokens.x)
                x, weights = layer(tokens.x, cos, sin, mask, past_key_values=cache)
                tokens = tokens._replace(x=x)
                attentions.append(weights)
        if cache is not None:
            cache.seen += (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        last = self.norm(tokens.x)
        return ElvaModelOutput(
            last_hidden_state=last,
            past_key_values=cache if use_cache else None,
            hidden_states=(*states, last) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            token_index=tokens.index,
            token_size=tokens.size,
        )

    def _stretch(
        self, input_ids, inputs_embeds, attention_mask, cache
    ) -> tuple[torch.Tensor, bool]:
        """How RoPE is scaled for each row, and whether all earlier tokens have to be run again."""
        new = input_ids if inputs_embeds is None else inputs_embeds
        seen = 0 if cache is None else cache.seen
        if attention_mask is None or attention_mask.dim() != 2:
            lengths = torch.full((len(new),), seen + new.shape[1], device=new.device)
        else:
            lengths = attention_mask.long().sum(1)
        stretch = stretches(self.config, lengths)
        if cache is None:
            return stretch, False
        before, cache.stretch = cache.stretch, stretch
        return stretch, seen > 0 and before is not None and bool((before != stretch).any())

    def _run_again(self, cache, attention_mask, merging, output_hidden_states, output_attentions):
        """Runs all tokens of a cache, with RoPE scaled for their number; returns the new ones."""
        inputs, new = dict(cache.inputs), cache.inputs["input_ids"]
        if new is None:
            raise ValueError(
                "the sequence has become longer than RoPE is scaled for, and inputs_embeds cannot"
                " be run again; give input_ids"
            )
        count = new.shape[1] - cache.seen
        if inputs["pixel_values"] is None:
            del inputs["pixel_values"], inputs["tube_ids"]
        cache.reset()
        out = self(
            **inputs,
            attention_mask=attention_mask,
            past_key_values=cache,
            merging=merging,
            use_cache=True,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        index = torch.arange(count, device=new.device).expand(len(new), -1)
        return ElvaModelOutput(
            last_hidden_state=out.last_hidden_state[:, -count:],
            past_key_values=cache,
            hidden_states=out.hidden_states
            and tuple(state[:, -count:] for state in out.hidden_states),
            attentions=out.attentions,
            token_index=torch.where(out.token_index[:, -count:] < 0, -1, index),
            token_size=out.token_size[:, -count:],
        )

    def _blocks(self) -> list[tuple[int, int, tuple[str, float, float] | None]]:
        """(first layer, end, settings of the merging before it) of the decoder's layer blocks."""
        c = self.config
        rules = list(zip(c.merge_policies, c.merge_thresholds, c.merge_ratios, strict=True))
        edges = [*c.merge_layers, c.num_hidden_layers]
        first = [(0, edges[0], None)] if edges[0] > 0 else []
        return first + [(edges[k], edges[k + 1], rule) for k, rule in enumerate(rules)]

    def _cache(self, past_key_values) -> ElvaCache:
        if isinstance(past_key_values, ElvaCache):
            return past_key_values
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                "past_key_values must be an ElvaCache (as in earlier outputs), got a"
                f" {type(past_key_values).__name__}"
            )
        return ElvaCache(self.config)

    def _enter(
        self,
        input_ids,
        inputs_embeds,
        attention_mask,
        position_ids,
        past,
        pixel_values,
        tube_ids,
        merging,
    ) -> Tokens:
        """Embeds the new tokens, with their positions and tubes."""
        c = self.config
        if input_ids is None:
            if pixel_values is not None:
                raise ValueError(
                    "pixel_values come with input_ids, which say where the visual tokens are"
                )
            x, is_visual = (
                inputs_embeds,
                torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device),
            )
        else:
            is_frame, is_patch, is_line = (
                input_ids == i for i in (c.frame_token_id, c.patch_token_id, c.line_token_id)
            )
            is_visual = is_frame | is_patch | is_line
            x = self.embed_tokens(input_ids.masked_fill(is_visual, 0))
            if pixel_values is None and bool(is_visual.any()):
                raise ValueError("input_ids hold visual tokens, but no pixel_values came with them")
            if pixel_values is not None:
                visual = self.patch_embed(
                    self._patches(pixel_values, is_patch), is_frame, is_patch, is_line
                )
                at = is_visual.flatten().nonzero()[:, 0]
                x = x.flatten(0, 1).index_copy(0, at, visual.to(x.dtype)).view_as(x)
        batch, length = x.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(
                batch, length + (past.get_seq_length() if past is not None else 0), device=x.device
            )
        if attention_mask.dim() != 2:
            raise ValueError(
                f"attention_mask must be [batch, tokens], got shape {list(attention_mask.shape)};"
                " masks for attention are built from it"
            )
        valid = attention_mask[:, -length:].bool()
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        tube = torch.full((batch, length), -1, device=x.device)
        if pixel_values is not None and merging and c.merge_layers:
            if tube_ids is None:
                raise ValueError(
                    "merging needs tube_ids; take them from the processor, or pass merging=False"
                )
            may_merge = (is_patch | is_line if c.merge_lines else is_patch) & valid
            tube = torch.where(may_merge, tube_ids[:, -length:], -1)
        index = torch.arange(length, device=x.device).expand(batch, -1)
        return Tokens(
            x,
            valid,
            position_ids.expand(batch, -1),
            tube,
            valid.float(),
            torch.where(valid, index, -1),
        )

    @staticmethod
    def _patches(pixel_values: torch.Tensor, is_patch: torch.Tensor) -> torch.Tensor:
        """[M, K]: the rows of pixel_values [B, N, K] that are patches, without padding."""
        counts = is_patch.sum(1)
        if (
            pixel_values.dim() != 3
            or pixel_values.shape[0] != is_patch.shape[0]
            or pixel_values.shape[1] != int(counts.max())
        ):
            wanted = f"[{is_patch.shape[0]}, {int(counts.max())}, …]"
            raise ValueError(
                f"pixel_values have shape {list(pixel_values.shape)}, the patch tokens in input_ids"
                f" ask for {wanted}"
            )
        used = torch.arange(pixel_values.shape[1], device=counts.device) < counts[:, None]
        return pixel_values[used]

    def _mask(self, tokens: Tokens, seen: torch.Tensor) -> torch.Tensor | None:
        """[B, 1, S, T], causal, without padding; None where PyTorch's own causal mask is equal."""
        length, total = tokens.valid.shape[1], seen.shape[1]
        eager = self.config._attn_implementation == "eager"
        if not eager and length in (1, total) and bool(seen.all()):
            return None
        place = torch.arange(total, device=seen.device)
        own = place[total - length :, None]
        # Padding attends to itself: a row without any key would be NaN, and spread.
        allowed = (seen[:, None] & (place <= own)) | (place == own)
        if not eager:
            return allowed[:, None]
        zeros = torch.zeros(allowed.shape, dtype=tokens.x.dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, torch.finfo(tokens.x.dtype).min)[:, None]


class ElvaForCausalLM(ElvaPreTrainedModel, GenerationMixin):
    """ELVA: answers questions about videos and images."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ElvaConfig):
        super().__init__(config)
        self.model = ElvaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: ElvaCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tube_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        merging: bool | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ElvaCausalLMOutput:
        """`ElvaModel.forward` with logits.

        Args:
          labels: [B, S], the ids to predict, -100 elsewhere; they follow the tokens through
            merging. Visual tokens cannot be labels.
          logits_to_keep: the number of last tokens whose logits are wanted, or their indices; 0:
            all. Not together with `labels`.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            tube_ids=tube_ids,
            merging=merging,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = out.last_hidden_state
        if labels is None:
            hidden = hidden[
                :,
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep,
            ]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            following = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            targets = following.gather(1, out.token_index.clamp(min=0)).masked_fill(
                out.token_index < 0, -100
            )
            loss = self.loss_function(
                logits=logits,
                labels=None,
                vocab_size=self.config.vocab_size,
                shift_labels=targets,
                num_items_in_batch=num_items_in_batch,
            )
        return ElvaCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            token_index=out.token_index,
            token_size=out.token_size,
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation={generation_config.cache_implementation!r}: ELVA"
                    " generates with its own ElvaCache"
                )
            model_kwargs["past_key_values"] = ElvaCache(self.config)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, *args, is_first_iteration=False, tube_ids=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        # Without a cache every step runs all tokens again; with one, visual tokens run once.
        if inputs.get("pixel_values") is not None and tube_ids is not None:
            fresh = input_ids.shape[1] - tube_ids.shape[1]
            inputs["tube_ids"] = nn.functional.pad(tube_ids, (0, fresh), value=-1)
        return inputs


__all__ = ["ElvaCache", "ElvaForCausalLM", "ElvaModel", "ElvaPreTrainedModel"]
