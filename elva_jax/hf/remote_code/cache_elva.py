"""The cache of ELVA's generation: keys and values, masks and inputs."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache

from .configuration_elva import ElvaConfig


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
