"""The keys of a text tower, and of a stage that trains towers on captions; see `config.schema`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from elva_jax.config.keys import key
from elva_jax.utils import numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The text tower that a stage of kind teacher compares clips with; BERT-base by default.

    Captions have `teacher.text_length` tokens. With kind = siglip the group `teacher` describes the
    tower (`text_layers`, `hidden_size` and the other sizes of its blocks).
    """

    kind: Literal["siglip", "bert"] = key(
        "siglip", "architecture; siglip: the text side of the vision tower, bert: BERT"
    )
    init_from: str = key(
        "",
        "Hugging Face folder or hub name, run or converted checkpoint with its weights;"
        ' "": siglip from teacher.init_from, bert at random',
    )
    tokenizer: str = key(
        "",
        'folder or hub name of the tokenizer that it was trained with; "": that of the folder or'
        " hub name with its weights, if it has one, otherwise the run's",
    )
    vocab_size: int = key(
        0, "rows of its embedding table; 0: model.vocab_size", minimum=0, most=numbers.MOST_WIDTH
    )
    hidden_size: int = key(768, "bert: width", minimum=1, most=numbers.MOST_WIDTH)
    intermediate_size: int = key(
        3072, "bert: inner width of its MLPs", minimum=1, most=numbers.MOST_WIDTH
    )
    num_layers: int = key(12, "bert: number of layers", minimum=1, most=numbers.MOST_LAYERS)
    num_heads: int = key(12, "bert: number of attention heads", minimum=1, most=numbers.MOST_LAYERS)
    max_position: int = key(
        512, "bert: longest sequence in tokens", minimum=1, most=numbers.MOST_TOKENS
    )
    token_types: int = key(
        2,
        "bert: rows of its table of token types, of which captions use the first",
        minimum=1,
        most=numbers.MOST_LAYERS,
    )
    activation: Literal["gelu", "gelu_tanh"] = key(
        "gelu", "bert: activation of its MLPs, the exact GELU or that by tanh"
    )
    norm_eps: float = key(1e-12, "bert: epsilon of its layer norms", minimum=0)
    pooling: Literal["cls", "pooler", "mean"] = key(
        "cls",
        "bert: feature of a caption; cls: last state of [CLS], pooler: that through BERT's pooler,"
        " mean: mean over the caption's tokens",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How a stage of kind teacher compares clips with captions (ELVA's Table 4)."""

    loss: Literal["sigmoid", "infonce"] = key(
        "sigmoid",
        "sigmoid: SigLIP's, over the pairs of a micro-batch; infonce: symmetric InfoNCE over all"
        " pairs of the batch, of all devices and micro-batches",
    )
    temperature: float = key(0.07, "infonce: initial value of the learned temperature", above=0)
    projection: int = key(
        0,
        "infonce: width in which clips and captions are compared, after a linear map of each; 0: no"
        " maps, for towers of the same width",
        minimum=0,
        most=numbers.MOST_WIDTH,
    )
    frame_pooling: Literal["mean", "direction"] = key(
        "mean",
        "infonce: how the features of data.num_frames frames become a clip's; mean: their mean,"
        " direction: the mean of the normalized ones. A tower that sees clips pools its own, and"
        " several of these are averaged in the same way",
    )
    remat: bool = key(
        default=True,
        meaning="infonce: whether the backward pass computes the activations inside each block of"
        " both towers again, which saves most of their memory",
    )
