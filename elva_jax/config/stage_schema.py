"""The keys of a stage; see `config.schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from elva_jax.config.keys import key, named
from elva_jax.config.text_schema import ContrastConfig
from elva_jax.utils import numbers

Evaluator = Literal["loss", "accuracy", "retrieval", "merging"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data source of a mixture."""

    name: str = key(
        "",
        "a TFDS name such as moving_shapes/easy; a file: .json, .jsonl (LLaVA), .csv (WebVid) or"
        " .tar (WebDataset); or hf:FOLDER",
    )
    split: str = key("", "split of a TFDS or Hugging Face data set; files have none")
    weight: float = key(1.0, "relative share of the examples drawn from it", above=0)
    tasks: tuple[Literal["object", "caption", "open", "choice"], ...] = key(
        (), "kinds of turns to use from a TFDS data set; (): all"
    )
    root: str = key(
        "",
        "folder that the media paths of a .json, .jsonl, .csv or hf:FOLDER are relative to;"
        ' "": the folder of the file',
    )
    sampling: str = key(
        "all",
        "which records are used: all, first:N, end:N or random:N, where N is a number of records"
        " or a share such as 10%",
    )
    epochs: float = key(
        1.0,
        "how often its records appear in one pass over the mixture, where data.temperature sets"
        " the shares",
        above=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a stage, and how examples become sequences."""

    mixture: Mapping[str, SourceConfig] = named(
        SourceConfig, "the data sources, by names of your own"
    )
    temperature: float = key(
        0.0,
        "T > 0: shares are proportional to weight * (epochs * records)^(1/T), as in T5 (1: by size,"
        " large: uniform); 0: the weights alone",
        minimum=0,
    )
    num_frames: int = key(
        1,
        "maximum frames sampled from a video, uniform in time",
        minimum=1,
        most=numbers.MOST_FRAMES,
    )
    fps: float = key(
        0.0,
        "frames per second to sample, up to num_frames; 0: num_frames spread over the video",
        minimum=0,
    )
    longest_edge: int = key(
        448,
        "pixels; larger frames are scaled down to this edge",
        minimum=1,
        most=numbers.MOST_PIXELS,
    )
    upscale: bool = key(
        default=False, meaning="whether smaller frames are scaled up to longest_edge"
    )
    num_low_frames: int = key(
        0,
        "hybrid resolution as an augmentation: number of additional, smaller frames; 0: off",
        minimum=0,
        most=numbers.MOST_FRAMES,
    )
    low_longest_edge: int = key(
        336,
        "pixels; the additional frames are scaled down to this edge",
        minimum=1,
        most=numbers.MOST_PIXELS,
    )
    hybrid_policy: Literal["interleave", "ends", "scene"] = key(
        "interleave", "which frames are the large ones; scene: those that change most"
    )
    hybrid_probability: float = key(
        0.5,
        "share of the videos read in hybrid resolution; other videos and images are read as if it"
        " were off",
        minimum=0,
        maximum=1,
    )
    seq_len: int = key(4096, "S, tokens of a packed sequence", minimum=1, most=numbers.MOST_TOKENS)
    max_patches: int = key(
        4096, "N, maximum patches of a packed sequence", minimum=1, most=numbers.MOST_TOKENS
    )
    max_frames: int = key(
        64, "maximum frames of a packed sequence", minimum=1, most=numbers.MOST_FRAMES
    )
    pack: bool = key(default=True, meaning="whether several short examples share a sequence")
    pack_lookahead: int = key(
        8,
        "decoded examples that wait before a sequence is filled, in sequences: more fill better,"
        " and are decoded again after a restart",
        minimum=1,
        most=numbers.MOST_ROWS,
    )
    max_turns: int = key(
        8, "maximum number of question turns about one video", minimum=1, most=numbers.MOST_ROWS
    )
    system_prompt: str = key(
        "You are a helpful assistant.", 'system turn of the chat template; "": none'
    )
    prompt_format: Literal["chatml", "llama2_base"] = key(
        "chatml",
        "tokens around questions and answers: chatml, Qwen2's; llama2_base: In: QUESTION, newline,"
        " Out: ANSWER, as MERV writes for LLaMA-2, with media after the first token",
    )
    captions: bool = key(
        default=False,
        meaning="whether examples are media and one answer without its question, which is learned"
        " from its first token on; such a stage cannot answer, only prepare later ones",
    )
    workers: int = key(
        0,
        "decoding processes; 0: a thread of the main process",
        minimum=0,
        most=numbers.MOST_WORKERS,
    )
    max_bad_fraction: float = key(
        0.05, "share of unreadable records above which the run stops", minimum=0, maximum=1
    )
    time_limit: float = key(
        60.0,
        "seconds after which an example that is still being read counts as unreadable; 0: no limit",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and options of the loss terms (paper, section 3.3)."""

    generation: float = key(1.0, "weight of next-token cross-entropy on answers", minimum=0)
    tube: float = key(0.0, "weight of tube-wise alignment with the teacher", minimum=0)
    contrastive: float = key(
        0.0, "weight of the frame-wise contrastive loss against the teacher", minimum=0
    )
    tube_reduction: Literal["sum", "mean"] = key(
        "sum", "reduction of the squared differences over channels"
    )
    tube_temporal: Literal["mean", "none"] = key(
        "mean", "mean: tubes are averaged over time; none: each frame's cell is compared separately"
    )
    temperature: float = key(
        0.07, "initial value of the contrastive loss's learned temperature", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank factors, trained in place of the decoder's matrices; all else is then frozen."""

    rank: int = key(0, "inner width of the factors; 0: no LoRA", minimum=0, most=numbers.MOST_ROWS)
    alpha: float = key(16.0, "the product of the factors is scaled by alpha / rank", above=0)
    targets: tuple[str, ...] = key(
        ("_proj$",),
        "regular expressions of the decoder's projections that get factors: q_proj, k_proj, v_proj,"
        " o_proj, gate_proj, up_proj, down_proj",
    )
    also: tuple[str, ...] = key(
        (),
        "regular expressions of the paths of other parameters to train in full, such as"
        " patch_embed",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = key(
        "adamw", "muon: matrices by Muon, all other parameters by AdamW"
    )
    learning_rate: float = key(4e-5, "peak learning rate", minimum=0)
    muon_learning_rate: float = key(0.02, "peak learning rate of Muon's matrices", minimum=0)
    warmup_ratio: float = key(0.03, "share of the steps with a linear warmup", minimum=0, maximum=1)
    final_ratio: float = key(0.0, "share of the peak left at the end of the cosine", minimum=0)
    b1: float = key(0.9, "Adam's first decay rate", minimum=0, below=1)
    b2: float = key(0.999, "Adam's second decay rate", minimum=0, below=1)
    eps: float = key(1e-8, "Adam's epsilon", minimum=0)
    weight_decay: float = key(0.0, "decoupled weight decay", minimum=0)
    decay_on: Literal["kernels", "matrices", "all"] = key(
        "kernels",
        "AdamW's parameters with weight decay: kernels of linear maps; matrices: these, the token"
        " embedding, the head and other learned matrices, but no bias and nothing with one axis;"
        " all: every parameter",
    )
    clip_norm: float = key(1.0, "maximum global gradient norm; 0: no clipping", minimum=0)
    accumulate: int = key(
        1,
        "micro-batches whose gradients are averaged in one step",
        minimum=1,
        most=numbers.MOST_ROWS,
    )
    freeze: tuple[str, ...] = key(
        (), "regular expressions of the paths of parameters that stay unchanged"
    )
    frozen_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "type in which frozen parameters are stored"
    )
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Measurements on held-out data while a stage trains; they change nothing in its training."""

    every: int = key(
        0, "steps between evaluations, of which one more is at the stage's end; 0: none", minimum=0
    )
    mixture: Mapping[str, SourceConfig] = named(
        SourceConfig,
        "the held-out sources, by names of your own; none: the stage's data.mixture, each source"
        " with the split eval.split",
    )
    split: str = key(
        "validation", "split of the stage's own sources, where eval.mixture names none"
    )
    examples: int = key(
        256,
        "number of examples: the first ones of the sources in turn",
        minimum=1,
        most=numbers.MOST_ROWS,
    )
    evaluators: tuple[Evaluator, ...] = key(
        ("loss", "accuracy"),
        "loss: on answers, by family of questions; accuracy: answers of which every token is the"
        " likeliest, and options that are the likeliest, by family; retrieval: <FRAME> features"
        " that find the teacher's of their own frame; merging: loss and accuracy with merging"
        " minus those without. A stage of kind teacher has loss, over all held-out pairs as one"
        " batch, and retrieval, clips that find their caption",
    )
    keep_best: str = key(
        "",
        "number whose best value so far keeps the weights of its step in <workdir>/<stage>.best,"
        ' such as loss, exact/count, choice or retrieval; "": none',
    )
    better: Literal["auto", "larger", "smaller"] = key(
        "auto", "which value of keep_best is better; auto: smaller for a loss, otherwise larger"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of the curriculum."""

    kind: Literal["elva", "teacher"] = key(
        "elva", "what it trains; teacher: the vision tower, on captions, by contrast.loss"
    )
    steps: int = key(0, "optimizer steps; 0: derived from epochs", minimum=0)
    epochs: float = key(0.0, "passes over the mixture, where steps is 0", minimum=0)
    batch_size: int = key(
        256, "sequences (packed rows) per step, over all devices", minimum=1, most=numbers.MOST_ROWS
    )
    merging: bool = key(default=False, meaning="whether tokens merge inside the decoder")
    merge_buckets: tuple[int, ...] = key(
        (),
        "for each merging layer: static number of tokens after it; 0 disables compaction",
        minimum=0,
        most=numbers.MOST_TOKENS,
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    contrast: ContrastConfig = dataclasses.field(default_factory=ContrastConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    eval: HeldOutConfig = dataclasses.field(default_factory=HeldOutConfig)
