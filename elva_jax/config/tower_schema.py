"""The keys of a vision tower and of MERV; see `config.schema`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from elva_jax.config.keys import key
from elva_jax.utils import numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A vision tower, SigLIP-so400m by default.

    It is a frozen teacher of the guidance losses (paper, section 3.3), a part of the encoder-based
    baseline, or an encoder of MERV.
    """

    kind: Literal[
        "siglip", "eva_clip", "eva02_clip", "dinov2", "vivit", "languagebind", "hiera"
    ] = key(
        "siglip",
        "architecture; eva_clip is EVA01-CLIP, such as EVA-CLIP-g, eva02_clip EVA02-CLIP, dinov2"
        " DINOv2 with registers; vivit, languagebind and hiera see clips",
    )
    init_from: str = key(
        "",
        "run, converted checkpoint, Hugging Face folder or hub name with its weights;"
        ' "": this run\'s stage named "teacher"; random, of an encoder of MERV: none',
    )
    image_size: int = key(
        384, "side of its square input in pixels", minimum=1, most=numbers.MOST_PIXELS
    )
    patch_size: int = key(14, "side of its patches in pixels", minimum=1, most=numbers.MOST_PIXELS)
    hidden_size: int = key(1152, "width of its features", minimum=1, most=numbers.MOST_WIDTH)
    intermediate_size: int = key(
        4304, "inner width of its MLPs", minimum=1, most=numbers.MOST_WIDTH
    )
    num_layers: int = key(27, "number of vision layers", minimum=1, most=numbers.MOST_LAYERS)
    num_heads: int = key(16, "number of attention heads", minimum=1, most=numbers.MOST_LAYERS)
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = key(
        "gelu_tanh",
        "activation of its MLPs: GELU by tanh, exact, or x * sigmoid(1.702 x); the EVA-CLIPs have"
        " their own",
    )
    num_registers: int = key(0, "register tokens of a dinov2", minimum=0, most=numbers.MOST_LAYERS)
    pretrained_image_size: int = key(
        0,
        "side in pixels of the images for which a dinov2 has positions, which are interpolated to"
        " image_size; 0: image_size",
        minimum=0,
        most=numbers.MOST_PIXELS,
    )
    num_frames: int = key(
        1,
        "frames of a clip that it sees at once (vivit 32, languagebind 8, hiera 16); 1: each frame"
        " alone",
        minimum=1,
        most=numbers.MOST_FRAMES,
    )
    tubelet: int = key(
        1, "consecutive frames in one patch (vivit, hiera: 2)", minimum=1, most=numbers.MOST_FRAMES
    )
    stages: tuple[int, ...] = key(
        (),
        "blocks in each stage of a hiera, whose patch_size and widths are those of its last stage",
        minimum=1,
        most=numbers.MOST_LAYERS,
    )
    features: Literal["penultimate", "last"] = key(
        "penultimate",
        "features that are read: the input of the last block, or its output after the final norm",
    )
    weight: float = key(
        1.0, "its weight in the guidance losses, where there are several teachers", minimum=0
    )
    text_layers: int = key(
        0,
        "number of layers of the text tower, needed only to train a teacher",
        minimum=0,
        most=numbers.MOST_LAYERS,
    )
    text_length: int = key(64, "tokens of a caption", minimum=1, most=numbers.MOST_TOKENS)
    dtype: Literal["float32", "bfloat16"] = key(
        "float32", "compute type during guidance; its parameters stay in float32"
    )

    @property
    def grid(self) -> int:
        """Patches along one side of the square input."""
        return self.image_size // self.patch_size

    @property
    def slots(self) -> int:
        """Steps in time of the features of one clip."""
        return self.num_frames // self.tubelet


@dataclasses.dataclass(frozen=True, kw_only=True)
class MervConfig:
    """MERV's visual tokens (arXiv 2501.01426), where model.patch_embed is merv."""

    encoders: tuple[str, ...] = key((), "names in the group encoders, in MERV's order")
    num_frames: int = key(
        32,
        "frames read from every video, evenly spaced; an encoder sees every k-th of them",
        minimum=1,
        most=numbers.MOST_FRAMES,
    )
    slots: int = key(16, "steps in time of the visual tokens", minimum=1, most=numbers.MOST_FRAMES)
    grid: int = key(
        8, "visual tokens along each side of a step in time", minimum=1, most=numbers.MOST_WIDTH
    )
    fusion: Literal["attention", "scalar", "sequence", "channels", "channels_norm"] = key(
        "attention",
        "attention: one weight for each encoder and video, by a learned query; scalar: learned"
        " weights; sequence, channels: concatenation; channels_norm: of channels, normalized",
    )
    fusion_width: int = key(
        3072, "width of the learned query of fusion attention", minimum=1, most=numbers.MOST_WIDTH
    )
    geometry: Literal["stretch", "published"] = key(
        "stretch",
        "stretch: every encoder sees each frame squashed to a square; published: as MERV's code,"
        " which crops frames for LanguageBind alone",
    )
