"""Every configuration key, written once: its type, allowed values, default, range and meaning.

The code reads these frozen dataclasses. What users change is an `ml_collections.ConfigDict` made
from them: a config file's `get_config(arg)` starts from `base()`, fills in the model, and adds one
`stage()` for each entry of its curriculum. `config.load.resolve` leads from the one to the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ml_collections import ConfigDict

from elva_jax.config.keys import key, named, to_config_dict
from elva_jax.config.merv import clip_tokens, values_per_patch
from elva_jax.config.stage_schema import (
    DataConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)
from elva_jax.config.text_schema import ContrastConfig, TextTowerConfig
from elva_jax.config.tower_schema import MervConfig, TeacherConfig
from elva_jax.utils import numbers

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigDict",
    "ContrastConfig",
    "DataConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "MervConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SourceConfig",
    "StageConfig",
    "TeacherConfig",
    "TextTowerConfig",
    "base",
    "mesh",
    "model",
    "optimizer",
    "source",
    "stage",
    "to_config_dict",
    "tower",
]

MergePolicy = Literal["threshold", "ratio", "both", "pool"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The ELVA model; a Qwen2-1.5B decoder by default."""

    vocab_size: int = key(
        151_936,
        "rows of the embedding table, at least the tokenizer's size",
        minimum=1,
        most=numbers.MOST_WIDTH,
    )
    hidden_size: int = key(1536, "D, width of the decoder", minimum=1, most=numbers.MOST_WIDTH)
    intermediate_size: int = key(8960, "inner width of SwiGLU", minimum=1, most=numbers.MOST_WIDTH)
    num_layers: int = key(28, "number of decoder layers", minimum=1, most=numbers.MOST_LAYERS)
    num_heads: int = key(12, "number of query heads", minimum=1, most=numbers.MOST_LAYERS)
    num_kv_heads: int = key(2, "number of key and value heads", minimum=1, most=numbers.MOST_LAYERS)
    head_dim: int = key(128, "width of a head", minimum=1, most=numbers.MOST_WIDTH)
    rope_theta: float = key(1_000_000.0, "base of RoPE", above=0)
    rope_scaling: Literal["default", "linear", "dynamic", "yarn", "llama3"] = key(
        "default", "how RoPE is extended beyond the trained context; default: not at all"
    )
    rope_factor: float = key(1.0, "extended context over trained context", above=0)
    rope_original_max_position: int = key(
        32_768,
        "trained context length, which RoPE scaling starts from",
        minimum=1,
        most=numbers.MOST_TOKENS,
    )
    rope_low_freq_factor: float = key(
        1.0,
        "llama3: planes with fewer rotations over the trained context are interpolated",
        above=0,
    )
    rope_high_freq_factor: float = key(
        4.0, "llama3: planes with more rotations over the trained context stay as they are", above=0
    )
    rms_norm_eps: float = key(1e-6, "epsilon of RMSNorm", minimum=0)
    initializer_range: float = key(
        0.02,
        "standard deviation of random weights of the decoder and the patch embedding; 0.02 suits"
        " widths from about 1,000 on, the inverse root of the width a narrow model",
        above=0,
    )
    bias_initializer_range: float = key(
        0.0,
        "standard deviation of random biases of q and k; pretrained models have large ones, from"
        " which heads know how far away a token is",
        minimum=0,
    )
    delimiter_initializer_range: float = key(
        0.0,
        "standard deviation of the random vectors of <FRAME> and <LINE>; 0: initializer_range",
        minimum=0,
    )
    tie_embeddings: bool = key(default=True, meaning="whether the head is the embedding table")
    max_position: int = key(
        32_768, "longest sequence in tokens", minimum=1, most=numbers.MOST_TOKENS
    )
    attention_bias: bool = key(
        default=True, meaning="whether q, k and v have biases (Qwen2: yes, Llama: no)"
    )
    patch_size: int = key(
        28,
        "side of a patch in pixels; with patch_embed = encoder it must equal teacher.patch_size",
        minimum=1,
        most=numbers.MOST_PIXELS,
    )
    patch_width: int = key(
        1024, "E, width of the patch embedding", minimum=1, most=numbers.MOST_WIDTH
    )
    patch_embed: Literal["video", "naive", "encoder", "merv"] = key(
        "video",
        "video: cross-attention into <FRAME> and <LINE>; naive: plain learned vectors (Table 3);"
        " encoder: the baseline, in which the teacher's tower and an MLP see each frame, squashed"
        " to the tower's square; merv: MERV, whose encoders are fused (arXiv 2501.01426)",
    )
    merv: MervConfig = dataclasses.field(default_factory=MervConfig)
    pixel_mean: float = key(
        0.5,
        "what the patch embedding subtracts from pixels of 0 to 1, before it divides by pixel_std",
        minimum=0,
        maximum=1,
    )
    pixel_std: float = key(0.5, "see pixel_mean", above=0)
    patch_heads: int = key(
        1, "heads of the patch embedding's cross-attention", minimum=1, most=numbers.MOST_LAYERS
    )
    dtype: Literal["float32", "bfloat16"] = key(
        "bfloat16", "compute type of activations and matrix products; parameters stay in float32"
    )
    remat: Literal["none", "full", "dots", "dots_no_batch", "names"] = key(
        "none",
        "what the backward pass recomputes to save memory: nothing, everything, everything but"
        " matrix products (or those without a batch dimension), or everything but queries, keys,"
        " values and attention outputs",
    )
    attention: Literal["auto", "xla", "cudnn"] = key("auto", "implementation of attention")
    frame_attention: Literal["causal", "bidirectional"] = key(
        "causal",
        "whether the tokens of a frame attend to those before them only, or to all of their frame;"
        " bidirectional needs attention = xla and mesh.context = 1",
    )
    merge_layers: tuple[int, ...] = key(
        (),
        "decoder layers before which tokens merge, increasing",
        minimum=0,
        most=numbers.MOST_TOKENS,
    )
    merge_policies: tuple[MergePolicy, ...] = key(
        (),
        "for each merging layer: merge above a similarity threshold, down to a ratio, by both, or"
        " by count whatever the content (pool)",
    )
    merge_thresholds: tuple[float, ...] = key(
        (),
        "for each merging layer: cosine similarity above which neighbors merge",
        minimum=-1,
        maximum=1,
    )
    merge_ratios: tuple[float, ...] = key(
        (),
        "for each merging layer: share of the entering mergeable tokens to keep; policy threshold"
        " does not use it",
        above=0,
        maximum=1,
    )
    merge_lines: bool = key(
        default=False, meaning="whether <LINE> tokens merge along their row index"
    )
    merge_survivor: Literal["last", "first"] = key(
        "last",
        "the member of a run of merged tokens at which their mean stands, with its position; first,"
        " as in FrameFusion, lets earlier frames of a clip see content of later ones",
    )
    # The group `teacher`, where patch_embed is encoder: Config.__post_init__ sets it.
    tower: TeacherConfig | None = dataclasses.field(default=None, metadata={"key": False})
    # The entries of the group `encoders` that merv.encoders names, in that order, where
    # patch_embed is merv: Config.__post_init__ sets them.
    encoders: tuple[tuple[str, TeacherConfig], ...] = dataclasses.field(
        default=(), metadata={"key": False}
    )

    @property
    def frame_patches(self) -> int:
        """Patches that go together, which divide N of every patch array.

        They are those of a frame where a tower sees it, those of a clip in MERV, otherwise 1.
        """
        if self.encoders:
            return clip_tokens(self.merv)
        return 1 if self.tower is None else self.tower.grid**2

    @property
    def patch_values(self) -> int:
        """K, the numbers of one patch of every patch array."""
        if self.encoders:
            return values_per_patch(self.merv, [encoder for _, encoder in self.encoders])
        return self.patch_size**2 * 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The device mesh; one axis may be -1, which takes all remaining devices."""

    data: int = key(-1, "batch parallel, parameters replicated", minimum=-1)
    fsdp: int = key(1, "batch parallel, parameters and optimizer sharded", minimum=-1)
    context: int = key(
        1,
        "sequences sharded, for long ones; needs model.attention xla (auto chooses it), and"
        " context x tensor devices within a process",
        minimum=-1,
    )
    tensor: int = key(1, "heads and inner widths sharded", minimum=-1)
    zero: Literal[2, 3] = key(
        3,
        "3: weights sharded over fsdp and gathered layer by layer; 2: gathered once per step;"
        " gradients and optimizer are sharded in both",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When Orbax saves."""

    every: int = key(
        500, "steps between saves; the last step of a stage is always saved", minimum=1
    )
    keep: int = key(2, "newest saves to keep in each stage; 0: all", minimum=0)
    minutes: float = key(
        0.0,
        "minutes between additional saves, of which only the newest is kept until the next"
        " regular save; 0: none",
        minimum=0,
    )
    on_error: Literal["stop", "continue"] = key(
        "stop",
        "what a failed save (disk full) does to the run; at the end of a stage it always stops",
    )
    mirror: str = key(
        "",
        "folder on other storage to which saved steps are copied, and from which an empty workdir"
        ' is restored; "": none',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Settings of the training log."""

    every: int = key(10, "steps between reports", minimum=1)
    tensorboard: bool = key(
        default=True, meaning="whether to write TensorBoard events in addition to metrics.jsonl"
    )
    wandb: str = key(
        "",
        "Weights & Biases project to write to as well; needs: pip install wandb;"
        ' WANDB_MODE=offline works; "": none',
    )
    peak_tflops: float = key(
        0.0,
        "peak TFLOP/s of one device, for MFU; 0: the bfloat16 peak of an A100, H100 or H200, and"
        " no MFU on other devices",
        minimum=0,
    )
    max_bad_steps: int = key(
        10, "consecutive steps with a non-finite loss before the run stops", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run: what all of its stages share, and the stages."""

    name: str = key("elva", "name of the run, used in titles and logs")
    seed: int = key(0, "seed of initialization, data order and every random choice", most=2**63 - 1)
    data_dir: str = key(".data", "where built data sets are stored")
    data_root: str = key(
        "",
        "folder that the files of sources and their media folders are relative to;"
        ' "": the working directory',
    )
    tokenizer: str = key(
        "",
        'folder of a transformers tokenizer; "": the one built with the data set,'
        " <data_dir>/tokenizer",
    )
    init_from: str = key(
        "",
        "run, converted checkpoint, Hugging Face folder or hub name that the first stage starts"
        ' from; "": random initialization',
    )
    curriculum: tuple[str, ...] = key((), "names of the stages to run, in order")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    teachers: Mapping[str, TeacherConfig] = named(
        TeacherConfig,
        "several teachers, by names of your own, whose guidance is summed by weight; none: the"
        " group teacher alone",
    )
    encoders: Mapping[str, TeacherConfig] = named(
        TeacherConfig, "the vision towers that model.merv.encoders chooses from, by name"
    )
    text_tower: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    stages: Mapping[str, StageConfig] = named(StageConfig, "the stages, by name")

    def __post_init__(self) -> None:
        """Gives the encoder-based baseline its vision tower, MERV its encoders."""
        embed, names = self.model.patch_embed, self.model.merv.encoders
        tower = self.teacher if embed == "encoder" else None
        chosen = [name for name in names if name in self.encoders] if embed == "merv" else []
        encoders = tuple((name, self.encoders[name]) for name in chosen)
        if (self.model.tower, self.model.encoders) != (tower, encoders):
            model = dataclasses.replace(self.model, tower=tower, encoders=encoders)
            object.__setattr__(self, "model", model)


def base() -> ConfigDict:
    """The settings that all stages of a run share, with defaults."""
    return to_config_dict(Config())


def model() -> ConfigDict:
    """The group `model` with defaults."""
    return to_config_dict(ModelConfig())


def mesh() -> ConfigDict:
    """The group `mesh` with defaults."""
    return to_config_dict(MeshConfig())


def stage() -> ConfigDict:
    """An entry of `stages` with defaults."""
    return to_config_dict(StageConfig())


def tower() -> ConfigDict:
    """An entry of `teachers` or `encoders` with defaults."""
    return to_config_dict(TeacherConfig())


def optimizer() -> ConfigDict:
    """A stage's group `optimizer` with defaults."""
    return to_config_dict(OptimizerConfig())


def source(
    name: str,
    split: str = "",
    weight: float = 1.0,
    tasks: tuple[str, ...] = (),
    root: str = "",
    sampling: str = "all",
    epochs: float = 1.0,
) -> ConfigDict:
    """An entry of a stage's `data.mixture`."""
    values = dict(locals())
    return to_config_dict(SourceConfig(**values))
