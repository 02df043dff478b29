"""ELVA in PyTorch: a Qwen2 decoder with visual tokens, token merging, and generation."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from .cache_elva import ElvaCache
from .configuration_elva import ElvaConfig
from .layers_elva import ElvaDecoderLayer, ElvaPatchEmbedding, ElvaRotaryEmbedding, stretches
from .merging_elva import Tokens, merge_tokens
from .outputs_elva import ElvaCausalLMOutput, ElvaModelOutput


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
