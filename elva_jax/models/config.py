"""Static descriptions of the models: frozen, hashable dataclasses, so that they can be module fields and jit statics."""

from __future__ import annotations

import dataclasses

from elva_jax.ops.merging import NO_MERGING, Merging
from elva_jax.ops.rope import PLAIN, RopeScaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling = PLAIN
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_position: int = 32768
    attention_bias: bool = True  # q, k, v biases, as in Qwen2; False for Llama


@dataclasses.dataclass(frozen=True)
class PatchEmbedConfig:
    """The video patch embedding (paper, section 3.1)."""

    patch_size: int = 28  # pixels of a patch's side
    width: int = 1024  # E
    kind: str = "video"  # video: cross-attention into <FRAME> and <LINE>; naive: plain learned vectors (Table 3); encoder: see ElvaConfig
    num_heads: int = 1  # heads of the cross-attention


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Trained factors beside the decoder's matrices (`models.lora`)."""

    rank: int  # R, at least 1
    alpha: float = 16.0  # their product counts alpha / rank times
    targets: tuple[str, ...] = (
        ".",
    )  # regular expressions; the projections whose names they find have factors


@dataclasses.dataclass(frozen=True)
class ElvaConfig:
    """The whole model."""

    decoder: DecoderConfig
    patch: PatchEmbedConfig = PatchEmbedConfig()
    merge: Merging = NO_MERGING
    dtype: str = (
        "float32"  # compute type of activations and matrix products; parameters stay float32
    )
    remat: str = (
        "none"  # none | full | dots | dots_no_batch | names: what the backward pass recomputes
    )
    attention: str = "auto"  # auto | xla | cudnn
    lora: LoraConfig | None = None  # while it trains with factors; None: it has none
    tower: SiglipConfig | None = (
        None  # of an encoder-based model, instead of `patch`; None: encoder-free
    )

    @property
    def frame_patches(self) -> int:
        """Patches that go together: those of a whole frame where a tower sees it, otherwise 1. It divides every patch array's N."""
        return 1 if self.tower is None else self.tower.grid**2


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP vision tower, and a text tower where `text_layers` > 0."""

    image_size: int = 384
    patch_size: int = 14
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 27
    num_heads: int = 16
    layer_norm_eps: float = 1e-6
    vocab_size: int = 0  # of the text tower
    text_layers: int = 0
    text_length: int = 64

    @property
    def grid(self) -> int:
        """Patches along one side of the square input."""
        return self.image_size // self.patch_size


SO400M = SiglipConfig()


@dataclasses.dataclass(frozen=True)
class EvaClipConfig:
    """An EVA-CLIP vision tower: EVA01 (EVA-CLIP-g by default), or EVA02 with RoPE, SwiGLU and norms inside its sub-layers."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_layers: int = 40
    num_heads: int = 16
    layer_norm_eps: float = 1e-6
    second: bool = False  # EVA02
    rope_grid: int = 16  # EVA02: patches along the side that positions are scaled to

    @property
    def grid(self) -> int:
        """Patches along one side of the square input."""
        return self.image_size // self.patch_size
