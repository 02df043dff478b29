"""Outputs of ELVA's modules, which say which input tokens they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


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
