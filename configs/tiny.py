"""A tiny ELVA that learns moving shapes on a laptop.

`configs/tiny.py` is the quickstart's; `:long` continues from its run for another quarter of an
hour; `:smoke` takes four steps per stage.
"""

from elva_jax.config import schema
from elva_jax.config.load import choose

DATA = "moving_shapes/easy"
# Images of one object come with the videos only: a model that begins with them learns to answer
# without looking for the object that is asked about.
SEVERAL = "image[30%:]"
QUICK_RUN = "runs/tiny"  # what `:long` starts from: the quickstart's --workdir
FRAMES = 4  # sampled from a video, so that a moving object moves one place per frame
STEPS = {
    "quick": dict(teacher=200, image=600, video=2000, sft=400),
    "long": dict(teacher=0, image=0, video=6000, sft=1000),
    "smoke": dict(teacher=4, image=4, video=4, sft=4),
}


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a variant: quick, long or smoke."""
    variant = choose("configs/tiny.py variant", arg or "quick", tuple(STEPS))
    steps = STEPS[variant]
    c = schema.base()
    c.name = f"tiny-{variant}"
    model(c.model)
    teacher(c.teacher)
    c.curriculum = ("teacher", "image", "video", "sft")
    c.stages.teacher = teacher_stage(steps["teacher"])
    c.stages.image = guided(image_stage(steps["image"]))
    c.stages.video = guided(video_stage(steps["video"]))
    c.stages.sft = sft_stage(steps["sft"])
    if variant == "long":
        c.curriculum = ("video", "sft")
        c.init_from = f"{QUICK_RUN}/video"
        c.teacher.init_from = f"{QUICK_RUN}/teacher"
    if variant == "smoke":
        c.log.every = 1
        c.checkpoint.every = 2
        for stage in c.stages.values():
            stage.batch_size = 2
    return c


def model(m) -> None:
    """0.6M parameters; a frame of 48 x 48 pixels has 13 tokens."""
    m.vocab_size = 640
    m.hidden_size = 96
    m.intermediate_size = 256
    m.num_layers = 4
    m.num_heads = 4
    m.num_kv_heads = 2
    m.head_dim = 24
    # A base for distances within a frame, of 13 tokens.
    m.rope_theta = 100.0
    # 0.02, right for wide models, is a fifth of what a layer of this width starts well from.
    m.initializer_range = 0.1
    # What a pretrained decoder brings: heads that know how far away a token is. With them, and
    # with <FRAME> and <LINE> that stand out from the pixels, a patch finds its row and column.
    m.bias_initializer_range = 1.0
    m.delimiter_initializer_range = 4.0
    # The background's gray becomes zero, so that little but objects is left of a patch.
    m.pixel_mean = 0.0627
    m.pixel_std = 0.157
    m.max_position = 1024
    m.patch_size = 16
    m.patch_width = 96
    m.dtype = "float32"
    m.merge_layers = (1, 2)
    m.merge_policies = ("threshold", "both")
    # The paper's 0.6 also merges patches whose color has changed: at this width they look alike.
    m.merge_thresholds = (0.9, 0.9)
    m.merge_ratios = (1.0, 0.5)


def teacher(t) -> None:
    """A SigLIP of 64 px with an 8 x 8 grid, and its text tower for training."""
    t.image_size = 64
    t.patch_size = 8
    t.hidden_size = 64
    t.intermediate_size = 192
    t.num_layers = 3
    t.num_heads = 4
    t.text_layers = 2
    t.text_length = 32


def teacher_stage(steps: int) -> schema.ConfigDict:
    """Trains the teacher on the images' captions by the sigmoid loss."""
    s = _common(steps)
    s.kind = "teacher"
    s.batch_size = 32
    s.data.mixture.images = schema.source(DATA, "image", tasks=("object", "caption"))
    return s


def image_stage(steps: int) -> schema.ConfigDict:
    """Stage 1 of the paper: one frame."""
    s = _common(steps)
    s.data.mixture.images = schema.source(DATA, SEVERAL, tasks=("object", "open"))
    s.data.seq_len = 160
    s.data.max_patches = 18
    s.data.max_frames = 2
    return s


def video_stage(steps: int) -> schema.ConfigDict:
    """Stage 2 of the paper: videos, mixed with images so that the model does not forget these."""
    s = _common(steps)
    s.optimizer.learning_rate = 1e-3
    s.optimizer.muon_learning_rate = 0.005
    s.batch_size = 10
    s.data.mixture.images = schema.source(DATA, "image", weight=1.0, tasks=("object", "open"))
    s.data.mixture.videos = schema.source(DATA, "train", weight=2.0, tasks=("object", "open"))
    s.data.num_frames = FRAMES
    s.data.seq_len = 156 + 13 * FRAMES
    s.data.max_patches = 18 + 9 * FRAMES
    s.data.max_frames = 2 + FRAMES
    return s


def sft_stage(steps: int) -> schema.ConfigDict:
    """Stage 3 of the paper: questions, with merging and without guidance, at a lower rate."""
    s = video_stage(steps)
    s.merging = True
    s.optimizer.learning_rate = 2.5e-4
    s.optimizer.muon_learning_rate = 2.5e-3
    return s


def _common(steps: int) -> schema.ConfigDict:
    s = schema.stage()
    s.steps = steps
    s.batch_size = 16
    s.data.longest_edge = 48
    s.data.system_prompt = ""
    s.data.max_turns = 10
    s.optimizer.name = "muon"
    s.optimizer.learning_rate = 2e-3
    # Twice this rate learns to find an object only when the schedule has halved it.
    s.optimizer.muon_learning_rate = 0.01
    s.optimizer.warmup_ratio = 0.03
    return s


def guided(s: schema.ConfigDict) -> schema.ConfigDict:
    """Adds the teacher's losses."""
    # Weights of 1, as in the paper, slowed the learning of answers here, and 0.1 still that of
    # positions: Muon normalizes the sum of all gradients.
    s.loss.tube = 0.02
    s.loss.contrastive = 0.01
    return s
