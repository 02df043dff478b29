"""Writing the decoder of a run alone, as a Qwen2 or Llama folder of transformers.

A MERV has no class in transformers, and its decoder is an ordinary language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elva_jax.config.schema import ModelConfig
from elva_jax.hf import qwen2, rope
from elva_jax.hf.param_mapping import Table

DECODERS = ("Qwen2ForCausalLM", "LlamaForCausalLM")


def to_hf_config(model: ModelConfig, dtype: str, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's config.json; a decoder without biases of q, k and v is a Llama.

    Args:
      model: a run's `config.model`.
      dtype: dtype of the exported weights.
      special_ids: pad_token_id, eos_token_id and, if the tokenizer has it, bos_token_id.
    """
    qwen, llama = zip(qwen2.MODEL_TYPES, DECODERS, strict=True)
    kind, architecture = qwen if model.attention_bias else llama
    return {
        "model_type": kind,
        "architectures": [architecture],
        "dtype": dtype,
        **{theirs: getattr(model, ours) for ours, theirs in qwen2.SAME.items()},
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "tie_word_embeddings": model.tie_embeddings,
        "hidden_act": "silu",
        "rope_parameters": rope.write(model),
        **special_ids,
    }


TABLE = Table(qwen2.RULES)
