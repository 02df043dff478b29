"""A tiny ELVA that learns moving shapes on a laptop: `configs/tiny.py`, `:long` (an hour on two cores) or `:smoke` (a few seconds)."""

from elva_jax.config import base
from elva_jax.config.load import choose

DATA = "moving_shapes/easy"


def get_config(arg: str = "") -> base.ConfigDict:
    variant = choose("configs/tiny.py variant", arg or "quick", ("quick", "long", "smoke"))
    c = base.base()
    c.name = f"tiny-{variant}"
    _model(c.model)
    _teacher(c.teacher)
    c.checkpoint.every = 400
    c.curriculum = ("teacher", "image", "video", "sft")
    steps = {
        "quick": dict(teacher=300, image=700, video=900, sft=450),
        "long": dict(teacher=600, image=2000, video=5000, sft=3000),
        "smoke": dict(teacher=4, image=4, video=4, sft=4),
    }[variant]
    frames = 8 if variant == "long" else 4
    c.stages.teacher = teacher_stage(steps["teacher"])
    c.stages.image = _image_stage(steps["image"])
    c.stages.video = _video_stage(steps["video"], frames)
    c.stages.sft = _sft_stage(steps["sft"], frames)
    if variant == "smoke":
        c.log.every = 1
        c.checkpoint.every = 2
        for stage in c.stages.values():
            stage.batch_size = 2
    return c


def _model(m):
    m.vocab_size = 640
    m.hidden_size = 96
    m.intermediate_size = 256
    m.num_layers = 4
    m.num_heads = 4
    m.num_kv_heads = 2
    m.head_dim = 24
    m.rope_theta = 10_000.0
    m.max_position = 1024
    m.patch_size = 16
    m.patch_width = 96
    m.dtype = "float32"
    m.merge_layers = (1, 2)
    m.merge_policies = ("threshold", "both")
    m.merge_thresholds = (0.6, 0.6)
    m.merge_ratios = (1.0, 0.5)


def _teacher(t):
    t.image_size = 64
    t.patch_size = 8
    t.hidden_size = 64
    t.intermediate_size = 192
    t.num_layers = 3
    t.num_heads = 4
    t.text_layers = 2
    t.text_length = 32


def _common(stage, steps):
    stage.steps = steps
    stage.batch_size = 16
    stage.data.longest_edge = 64
    stage.data.system_prompt = ""
    stage.data.max_turns = 10
    stage.optimizer.name = "muon"
    stage.optimizer.learning_rate = 2e-3
    stage.optimizer.muon_learning_rate = 0.02
    stage.optimizer.warmup_ratio = 0.03
    return stage


def teacher_stage(steps):
    s = _common(base.stage(), steps)
    s.kind = "teacher"
    s.batch_size = 64
    s.data.mixture.images = base.source(DATA, "image", tasks=("object", "caption"))
    s.optimizer.name = "adamw"
    s.optimizer.learning_rate = 1e-3
    return s


def _image_stage(steps):
    s = _common(base.stage(), steps)
    s.data.mixture.images = base.source(DATA, "image", tasks=("object", "caption", "open"))
    s.data.seq_len = 192
    s.data.max_patches = 32
    s.data.max_frames = 2
    s.loss.tube = 1.0
    s.loss.contrastive = 0.1
    return s


def _video_stage(steps, frames):
    s = _common(base.stage(), steps)
    s.data.mixture.videos = base.source(DATA, "train", tasks=("object", "caption", "open"))
    s.data.num_frames = frames
    s.data.seq_len = 192 + 21 * frames
    s.data.max_patches = 16 * frames
    s.data.max_frames = frames
    s.loss.tube = 1.0
    s.loss.contrastive = 0.1
    return s


def _sft_stage(steps, frames):
    s = _video_stage(steps, frames)
    s.loss.tube = 0.0
    s.loss.contrastive = 0.0
    s.merging = True
    s.data.mixture.videos.tasks = ("open", "choice", "object")
    s.optimizer.learning_rate = 1e-3
    s.optimizer.muon_learning_rate = 0.01
    return s
