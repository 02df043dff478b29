"""The paper's own figures (arXiv 2503.18422) that `elva bench` sets beside ours, and the models that they are about."""

from __future__ import annotations

from typing import NamedTuple

from elva_jax.config.schema import ModelConfig, TeacherConfig

# All in float32, the type in which their costs are compared with XLA's counts.
QWEN2_1_5B = ModelConfig(dtype="float32")
QWEN2_7B = ModelConfig(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_heads=28,
    num_kv_heads=4,
    tie_embeddings=False,
    dtype="float32",
)
VICUNA_7B = ModelConfig(  # decoder of the encoder-based baseline
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    tie_embeddings=False,
    attention_bias=False,
    dtype="float32",
)
CLIP_L_336 = TeacherConfig(  # its vision tower; CLIP has a class token besides the 576 patches
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
)


class PatchEmbedding(NamedTuple):
    """A row of Table 3."""

    millions: int  # parameters at the 7B size
    msvd: float  # accuracy, %
    videomme: float  # accuracy, %


TABLE3 = {"naive": PatchEmbedding(6, 48.7, 39.6), "video": PatchEmbedding(9, 49.9, 42.2)}


class Efficiency(NamedTuple):
    """A cell of Table 5: one A100, 336 px, 120 output tokens."""

    memory_gb: float
    tflops: int
    ttft_s: float  # time to the first token


VARIANTS = {
    "encoder_based": "encoder-based",
    "encoder_free": "encoder-free",
    "merge": "+ merge",
    "merge_hr": "+ merge + HR",
}
TABLE5 = {
    32: {
        "encoder_based": Efficiency(20.7, 260, 2.59),
        "encoder_free": Efficiency(20.0, 75, 0.51),
        "merge": Efficiency(16.4, 25, 0.26),
        "merge_hr": Efficiency(15.5, 14, 0.22),
    },
    64: {
        "encoder_based": Efficiency(27.6, 517, 5.92),
        "encoder_free": Efficiency(25.4, 146, 1.11),
        "merge": Efficiency(18.0, 47, 0.46),
        "merge_hr": Efficiency(16.3, 24, 0.27),
    },
    128: {
        "encoder_based": Efficiency(41.4, 1030, 15.18),
        "encoder_free": Efficiency(39.6, 289, 2.14),
        "merge": Efficiency(22.5, 104, 0.97),
        "merge_hr": Efficiency(18.5, 44, 0.56),
    },
}
# What Table 5's FLOPs imply: the share of the visual tokens of all frames at 336 px that remains, averaged over the decoder's layers.
RETENTION = {
    32: {"merge": 0.296, "merge_hr": 0.141},
    64: {"merge": 0.303, "merge_hr": 0.141},
    128: {"merge": 0.352, "merge_hr": 0.141},
}
EDGE, LOW_EDGE = (
    336,
    112,
)  # pixels: all frames, and the half of them that hybrid resolution makes small
OTHER_TOKENS = 283  # text and output beside the visual tokens of an encoder-free row
OTHER_TOKENS_ENCODER_BASED = 257
OUTPUT_TOKENS = 120

HIGH_EDGE_TABLE6, LOW_EDGE_TABLE6 = 672, 224  # pixels
TABLE6 = {
    (8, 16): 5976,
    (8, 32): 7144,
    (16, 0): 9616,
    (16, 8): 10_200,
    (16, 16): 10_784,
    (32, 0): 19_232,
}  # (high, low) frames: tokens


class Data(NamedTuple):
    """A part of Table 7's data."""

    count: int  # examples
    video: bool


EXAMPLES = {  # by its label in configs/data/
    "densefusion": Data(1_000_000, False),
    "recaptioned_images": Data(3_000_000, False),
    "webvid": Data(2_000_000, True),
    "valor": Data(1_000_000, True),
    "llava_images": Data(665_000, False),
    "llava_video": Data(178_000, True),
    "hd": Data(3_000_000, False),
}
