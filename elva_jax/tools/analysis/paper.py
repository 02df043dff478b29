"""The paper's figures (arXiv 2503.18422), which `elva bench` compares with ours, and its models."""

from __future__ import annotations

import dataclasses

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchEmbedding:
    """A row of Table 3."""

    millions: int  # parameters at the 7B size
    msvd: float  # accuracy, %
    videomme: float  # accuracy, %


TABLE3 = {
    "naive": PatchEmbedding(millions=6, msvd=48.7, videomme=39.6),
    "video": PatchEmbedding(millions=9, msvd=49.9, videomme=42.2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
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
MODELS = VARIANTS | {"merv": "MERV"}  # and the multi-encoder baseline, which Table 5 lacks
TABLE5 = {
    32: {
        "encoder_based": Efficiency(memory_gb=20.7, tflops=260, ttft_s=2.59),
        "encoder_free": Efficiency(memory_gb=20.0, tflops=75, ttft_s=0.51),
        "merge": Efficiency(memory_gb=16.4, tflops=25, ttft_s=0.26),
        "merge_hr": Efficiency(memory_gb=15.5, tflops=14, ttft_s=0.22),
    },
    64: {
        "encoder_based": Efficiency(memory_gb=27.6, tflops=517, ttft_s=5.92),
        "encoder_free": Efficiency(memory_gb=25.4, tflops=146, ttft_s=1.11),
        "merge": Efficiency(memory_gb=18.0, tflops=47, ttft_s=0.46),
        "merge_hr": Efficiency(memory_gb=16.3, tflops=24, ttft_s=0.27),
    },
    128: {
        "encoder_based": Efficiency(memory_gb=41.4, tflops=1030, ttft_s=15.18),
        "encoder_free": Efficiency(memory_gb=39.6, tflops=289, ttft_s=2.14),
        "merge": Efficiency(memory_gb=22.5, tflops=104, ttft_s=0.97),
        "merge_hr": Efficiency(memory_gb=18.5, tflops=44, ttft_s=0.56),
    },
}
# Implied by Table 5's FLOPs: the share of the visual tokens of all frames at 336 px that remains on
# average over the decoder's layers.
RETENTION = {
    32: {"merge": 0.296, "merge_hr": 0.141},
    64: {"merge": 0.303, "merge_hr": 0.141},
    128: {"merge": 0.352, "merge_hr": 0.141},
}
EDGE, LOW_EDGE = 336, 112  # pixels of all frames, and of the low half with hybrid resolution
OTHER_TOKENS = 283  # tokens of text and output of an encoder-free row
OTHER_TOKENS_ENCODER_BASED = 257
OUTPUT_TOKENS = 120

HIGH_EDGE_TABLE6, LOW_EDGE_TABLE6 = 672, 224  # pixels
TABLE6 = {  # (high, low) frames -> tokens
    (8, 16): 5976,
    (8, 32): 7144,
    (16, 0): 9616,
    (16, 8): 10_200,
    (16, 16): 10_784,
    (32, 0): 19_232,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A part of the data in Table 7."""

    count: int  # examples
    video: bool


EXAMPLES = {  # by label in configs/data/
    "densefusion": Data(count=1_000_000, video=False),
    "recaptioned_images": Data(count=3_000_000, video=False),
    "webvid": Data(count=2_000_000, video=True),
    "valor": Data(count=1_000_000, video=True),
    "llava_images": Data(count=665_000, video=False),
    "llava_video": Data(count=178_000, video=True),
    "hd": Data(count=3_000_000, video=False),
    # Those of MERV (arXiv 2501.01426).
    "valley": Data(count=702_000, video=True),
    "llava_pretraining": Data(count=558_000, video=False),
    "video_chatgpt": Data(count=100_000, video=True),
}
