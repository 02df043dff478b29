"""Every configuration key, written once: its type, allowed values, default, range and meaning.

The code reads these frozen dataclasses. What users change is an `ml_collections.ConfigDict` made
from them: a config file's `get_config(arg)` starts from `base()`, fills in the model, and adds one
`stage()` for each entry of its curriculum. `config.load.resolve` leads from the one to the other.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

MergePolicy = Literal["threshold", "ratio", "both", "pool"]


def key(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A key: its default, its meaning, and its range (of each entry, where the key is a tuple).

    `minimum` and `maximum` belong to the range, `above` and `below` do not.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"meaning": meaning, "limits": limits})


def named(cls: type, meaning: str) -> Any:
    """A mapping from names that the user chooses to groups of one class."""
    return dataclasses.field(default_factory=dict, metadata={"meaning": meaning, "named": cls})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The vision tower, SigLIP-so400m by default.

    It is the frozen teacher of the guidance losses (paper, section 3.3), or a part of the
    encoder-based baseline.
    """

    kind: Literal["siglip", "eva_clip", "eva02_clip"] = key(
        "siglip", "architecture; eva_clip is EVA01-CLIP, such as EVA-CLIP-g, eva02_clip EVA02-CLIP"
    )
    init_from: str = key(
        "",
        "run, converted checkpoint, Hugging Face folder or hub name with its weights;"
        ' "": this run\'s stage named "teacher"',
    )
    image_size: int = key(384, "side of its square input in pixels", minimum=1)
    patch_size: int = key(14, "side of its patches in pixels", minimum=1)
    hidden_size: int = key(1152, "width of its features", minimum=1)
    intermediate_size: int = key(4304, "inner width of its MLPs", minimum=1)
    num_layers: int = key(27, "number of vision layers", minimum=1)
    num_heads: int = key(16, "number of attention heads", minimum=1)
    text_layers: int = key(
        0, "number of layers of the text tower, needed only to train a teacher", minimum=0
    )
    text_length: int = key(64, "tokens of a caption", minimum=1)
    dtype: Literal["float32", "bfloat16"] = key(
        "float32", "compute type during guidance; its parameters stay in float32"
    )

    @property
    def grid(self) -> int:
        """Patches along one side of the square input."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The ELVA model; a Qwen2-1.5B decoder by default."""

    vocab_size: int = key(
        151_936, "rows of the embedding table, at least the tokenizer's size", minimum=1
    )
    hidden_size: int = key(1536, "D, width of the decoder", minimum=1)
    intermediate_size: int = key(8960, "inner width of SwiGLU", minimum=1)
    num_layers: int = key(28, "number of decoder layers", minimum=1)
    num_heads: int = key(12, "number of query heads", minimum=1)
    num_kv_heads: int = key(2, "number of key and value heads", minimum=1)
    head_dim: int = key(128, "width of a head", minimum=1)
    rope_theta: float = key(1_000_000.0, "base of RoPE", above=0)
    rope_scaling: Literal["default", "linear", "dynamic", "yarn"] = key(
        "default", "how RoPE is extended beyond the trained context; default: not at all"
    )
    rope_factor: float = key(1.0, "extended context over trained context", above=0)
    rope_original_max_position: int = key(
        32_768, "trained context length, which RoPE scaling starts from", minimum=1
    )
    rms_norm_eps: float = key(1e-6, "epsilon of RMSNorm", minimum=0)
    tie_embeddings: bool = key(default=True, meaning="whether the head is the embedding table")
    max_position: int = key(32_768, "longest sequence in tokens", minimum=1)
    attention_bias: bool = key(
        default=True, meaning="whether q, k and v have biases (Qwen2: yes, Llama: no)"
    )
    patch_size: int = key(
        28,
        "side of a patch in pixels; with patch_embed = encoder it must equal teacher.patch_size",
        minimum=1,
    )
    patch_width: int = key(1024, "E, width of the patch embedding", minimum=1)
    patch_embed: Literal["video", "naive", "encoder"] = key(
        "video",
        "video: cross-attention into <FRAME> and <LINE>; naive: plain learned vectors (Table 3);"
        " encoder: the baseline, in which the teacher's tower and an MLP see each frame, squashed"
        " to the tower's square",
    )
    patch_heads: int = key(1, "heads of the patch embedding's cross-attention", minimum=1)
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
    merge_layers: tuple[int, ...] = key(
        (), "decoder layers before which tokens merge, increasing", minimum=0
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
    # The group `teacher`, where patch_embed is encoder: Config.__post_init__ sets it.
    tower: TeacherConfig | None = dataclasses.field(default=None, metadata={"key": False})

    @property
    def frame_patches(self) -> int:
        """Patches that go together: those of a frame where a tower sees it, otherwise 1.

        It divides N of every patch array.
        """
        return 1 if self.tower is None else self.tower.grid**2


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
    """What is reported during training."""

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
    """What a stage reads, and how examples become sequences."""

    mixture: Mapping[str, SourceConfig] = named(
        SourceConfig, "the data sources, by names of your own"
    )
    temperature: float = key(
        0.0,
        "T > 0: shares are proportional to weight * (epochs * records)^(1/T), as in T5 (1: by size,"
        " large: uniform); 0: the weights alone",
        minimum=0,
    )
    num_frames: int = key(1, "maximum frames sampled from a video, uniform in time", minimum=1)
    fps: float = key(
        0.0,
        "frames per second to sample, up to num_frames; 0: num_frames spread over the video",
        minimum=0,
    )
    longest_edge: int = key(448, "pixels; larger frames are scaled down to this edge", minimum=1)
    upscale: bool = key(
        default=False, meaning="whether smaller frames are scaled up to longest_edge"
    )
    num_low_frames: int = key(
        0,
        "hybrid resolution as an augmentation: number of additional, smaller frames; 0: off",
        minimum=0,
    )
    low_longest_edge: int = key(
        336, "pixels; the additional frames are scaled down to this edge", minimum=1
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
    seq_len: int = key(4096, "S, tokens of a packed sequence", minimum=1)
    max_patches: int = key(4096, "N, maximum patches of a packed sequence", minimum=1)
    max_frames: int = key(64, "maximum frames of a packed sequence", minimum=1)
    pack: bool = key(default=True, meaning="whether several short examples share a sequence")
    max_turns: int = key(8, "maximum number of question turns about one video", minimum=1)
    system_prompt: str = key(
        "You are a helpful assistant.", 'system turn of the chat template; "": none'
    )
    workers: int = key(0, "decoding processes; 0: a thread of the main process", minimum=0)
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

    rank: int = key(0, "inner width of the factors; 0: no LoRA", minimum=0)
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
    clip_norm: float = key(1.0, "maximum global gradient norm; 0: no clipping", minimum=0)
    accumulate: int = key(1, "micro-batches whose gradients are averaged in one step", minimum=1)
    freeze: tuple[str, ...] = key(
        (), "regular expressions of the paths of parameters that stay unchanged"
    )
    frozen_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "type in which frozen parameters are stored"
    )
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of the curriculum."""

    kind: Literal["elva", "teacher"] = key(
        "elva", "what it trains; teacher: the vision tower, by the sigmoid loss"
    )
    steps: int = key(0, "optimizer steps; 0: derived from epochs", minimum=0)
    epochs: float = key(0.0, "passes over the mixture, where steps is 0", minimum=0)
    batch_size: int = key(256, "sequences (packed rows) per step, over all devices", minimum=1)
    merging: bool = key(default=False, meaning="whether tokens merge inside the decoder")
    merge_buckets: tuple[int, ...] = key(
        (),
        "for each merging layer: static number of tokens after it; 0 disables compaction",
        minimum=0,
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run: what all of its stages share, and the stages."""

    name: str = key("elva", "name of the run, used in titles and logs")
    seed: int = key(0, "seed of initialization, data order and every random choice")
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
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    stages: Mapping[str, StageConfig] = named(StageConfig, "the stages, by name")

    def __post_init__(self) -> None:
        """Gives the encoder-based baseline its vision tower, and no other model one."""
        tower = self.teacher if self.model.patch_embed == "encoder" else None
        if self.model.tower != tower:
            model = dataclasses.replace(self.model, tower=tower)
            object.__setattr__(self, "model", model)


def keys(cls: Any) -> dict[str, dataclasses.Field]:
    """The fields of a group that users may set, by name."""
    fields = dataclasses.fields(cls)
    return {field.name: field for field in fields if field.metadata.get("key", True)}


@functools.cache
def key_types(cls: Any) -> dict[str, Any]:
    """The types of a group's fields, by name."""
    return typing.get_type_hints(cls)


def to_config_dict(config: Any) -> ConfigDict:
    """The ConfigDict of a group, with the groups inside it."""
    out = ConfigDict()
    for name, field in keys(type(config)).items():
        value = getattr(config, name)
        if "named" in field.metadata:
            value = ConfigDict({label: to_config_dict(inner) for label, inner in value.items()})
        out[name] = to_config_dict(value) if dataclasses.is_dataclass(value) else value
    return out


def base() -> ConfigDict:
    """What all stages of a run share, with defaults."""
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
