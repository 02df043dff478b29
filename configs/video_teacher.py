"""Video pre-training of the teacher (Table 4): `configs/video_teacher.py:size=so400m,text=bert`.

SigLIP-so400m sees 8 frames of a clip and learns to find its caption among those of 4,096 clips by
InfoNCE, against BERT-base (text=bert) or its own text tower (text=siglip). Both towers start from
their published weights. The paper does not give batch, rate or length of this training: they are
ours. `size=tiny` continues from the teacher of the quickstart on moving shapes, in a few minutes.

The result is a teacher: --config.teacher.init_from=WORKDIR.
"""

from pathlib import Path

from elva_jax.config import mixtures, schema
from elva_jax.config.load import choose, parse_arg

SIGLIP = "checkpoints/siglip-so400m-patch14-384"
BERT = "checkpoints/bert-base-uncased"
QUICK_RUN = "runs/tiny"  # whose teacher `size=tiny` starts from: the quickstart's --workdir


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a size and a text tower."""
    args = parse_arg(arg, size="so400m", text="bert")
    size = choose("size", args["size"], ("so400m", "tiny"))
    text = choose("text", args["text"], ("bert", "siglip"))
    c = schema.base()
    c.name = f"video-teacher-{size}-{text}"
    c.curriculum = ("videos",)
    c.stages.videos = schema.stage()
    (so400m if size == "so400m" else tiny)(c, c.stages.videos, text)
    return c


def so400m(c, s, text: str) -> None:
    """Real sizes, for 32 GPUs of 80 GB."""
    c.model.vocab_size = 151_936  # of the run's tokenizer, which captions do not use
    c.teacher.init_from, c.teacher.dtype = SIGLIP, "bfloat16"
    c.text_tower.kind = text
    if text == "bert":
        c.text_tower.init_from, c.text_tower.vocab_size = BERT, 30_522
        c.teacher.text_length = 128
        s.contrast.projection = 768
    else:
        c.text_tower.vocab_size, c.teacher.text_layers = 32_000, 27
    c.mesh.data, c.mesh.fsdp, c.mesh.zero = -1, 8, 2
    video_stage(s)
    s.epochs, s.batch_size = 3.0, 4096
    s.data.mixture = mixtures.from_yaml(Path(__file__).parent / "data" / "video_teacher.yaml")
    s.data.num_frames = 8
    s.optimizer.accumulate = 16  # 8 clips of each GPU at a time
    s.optimizer.learning_rate = 1e-5
    s.optimizer.weight_decay = 0.01
    s.optimizer.warmup_ratio = 0.05


def tiny(c, s, text: str) -> None:
    """The teacher of `configs/tiny.py` and a text tower of two layers."""
    c.model.vocab_size = 640
    c.model.dtype = "float32"
    c.teacher.init_from = f"{QUICK_RUN}/teacher"
    c.teacher.update(image_size=64, patch_size=8, hidden_size=64, intermediate_size=192)
    c.teacher.update(num_layers=3, num_heads=4, text_layers=2, text_length=32)
    c.text_tower.kind = text
    if text == "bert":  # at random, in the tokens of the run
        c.text_tower.update(hidden_size=64, intermediate_size=192, num_layers=2, num_heads=4)
        c.text_tower.update(max_position=32, pooling="mean")
        s.contrast.projection = 64
    video_stage(s)
    s.steps, s.batch_size = 300, 32
    s.data.mixture.videos = schema.source("moving_shapes/easy", "train", tasks=("caption",))
    s.data.num_frames = 4
    s.optimizer.accumulate = 2
    s.optimizer.name = "muon"
    s.optimizer.learning_rate, s.optimizer.muon_learning_rate = 2e-3, 0.02


def video_stage(s) -> None:
    """InfoNCE over all clips of a batch."""
    s.kind = "teacher"
    s.contrast.loss = "infonce"
    s.contrast.temperature = 0.07
