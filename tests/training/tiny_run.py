"""The config file of a toy run, and random batches for tests without a data set."""

import numpy as np

from elva_jax.config import schema
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, pack

STAGES = ("teacher", "image", "video", "sft")
CLIPS = {"num_frames": 4, "image_size": 16, "patch_size": 8}
TOWERS = {  # by kind, what differs from the teacher
    "siglip": {},
    "dinov2": {"num_registers": 2, "activation": "gelu"},
    "eva_clip": {},
    "vivit": {**CLIPS, "tubelet": 2, "features": "last"},
    "languagebind": {**CLIPS, "activation": "gelu"},
    "hiera": {
        "num_frames": 4,
        "image_size": 64,
        "patch_size": 32,
        "num_layers": 7,
        "num_heads": 8,
        "tubelet": 2,
        "stages": (1, 2, 2, 2),
        "activation": "gelu",
        "features": "last",
    },
}


def get_config(arg: str = ""):
    """The toy run; `arg` is a comma-separated curriculum, by default all stages.

    Towers after it guide instead of the teacher: "video,sft+siglip+vivit".
    """
    arg, *towers = arg.split("+")
    c = schema.base()
    c.name = "toy"
    c.model.update(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=10_000.0,
        max_position=512,
        patch_size=16,
        patch_width=32,
        dtype="float32",
        merge_layers=(1,),
        merge_policies=("both",),
        merge_thresholds=(0.6,),
        merge_ratios=(0.5,),
    )
    c.teacher.update(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        text_layers=1,
        text_length=16,
    )
    for name in towers:
        c.teachers[name] = schema.tower()
        c.teachers[name].update({**c.teacher, **TOWERS[name]}, kind=name)
    c.checkpoint.every = 4
    c.log.every = 1
    for name in STAGES:
        c.stages[name] = _stage(name)
    c.curriculum = tuple(arg.split(",")) if arg else STAGES
    return c


def _stage(name: str):
    s = schema.stage()
    s.steps = 4
    s.batch_size = 4
    s.optimizer.update(name="muon", learning_rate=1e-2, muon_learning_rate=0.02, warmup_ratio=0.25)
    s.data.update(
        longest_edge=48,
        seq_len=160,
        max_patches=40,
        max_frames=8,
        max_turns=4,
        num_frames=1,
        system_prompt="",
    )
    split = "image" if name in ("teacher", "image") else "train"
    s.data.mixture.shapes = schema.source("moving_shapes/easy", split, tasks=("object", "caption"))
    if name == "teacher":
        s.kind = "teacher"
    else:
        s.loss.update(tube=0.5, contrastive=0.1)
    if name == "video":
        s.data.num_frames = 3
    if name == "sft":
        s.data.num_frames = 3
        s.merging = True
        s.loss.update(tube=0.0, contrastive=0.0)
    return s


def random_batch(config, stage_name: str, seed: int = 0):
    """A random batch with rows of different lengths; every second row has two examples."""
    rng = np.random.default_rng(seed)
    stage = config.stages[stage_name]
    data, rows = stage.data, stage.batch_size

    def example(turns: int) -> TokenLayout:
        parts = [Text(rng.integers(3, 400, 3)), Clip(((2, 3),) * min(data.num_frames, 2))]
        for _ in range(turns):
            parts += [Text(rng.integers(3, 400, 4)), Text(rng.integers(3, 400, 3), weight=1.0)]
        return build_layout(parts)

    layouts = [
        pack([example(1 + row % 4 + k) for k in range(1 + row % 2)], data.seq_len)
        for row in range(rows)
    ]
    sides = {teacher.image_size for teacher in config.teachers.values()}
    sides = sides or {config.teacher.image_size}
    return {
        "patches": rng.integers(
            0, 256, (rows, data.max_patches, config.model.patch_size**2 * 3), np.uint8
        ),
        "layout": TokenLayout(*(np.stack(field) for field in zip(*layouts, strict=True))),
        "teacher_frames": {
            side: rng.integers(0, 256, (rows, data.max_frames, side, side, 3), np.uint8)
            for side in sorted(sides)
        },
    }
