"""A bigger worked example for one GPU: a small pretrained decoder learns to see.

`configs/small.py:decoder=smollm2_135m|smollm2_360m|qwen2_5_0_5b,guidance=none|siglip,own=FILE.json`
trains on moving_shapes/hard at 224 px, and on clips of your own if `own` names a file of
conversations. `decoder=smoke` has no weights to read and takes two steps per stage.

The decoder's weights are those of a converted checkpoint, and so are the vision tower's of
`guidance=siglip`: docs/small.md has the commands. Everything else is learned from nothing.
"""

from elva_jax.config import schema
from elva_jax.config.load import choose, parse_arg

DATA = "moving_shapes/hard"
FRAMES = 8
PATCH, EDGE = 28, 224  # a square frame has 8 x 8 patches and 73 tokens, any other fewer

SMOLLM2 = dict(
    vocab_size=49_216,  # 49,152, <FRAME>, <PATCH> and <LINE>, in whole blocks of 64
    head_dim=64,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    max_position=8192,
    rope_original_max_position=8192,
    attention_bias=False,
    tie_embeddings=True,
)
DECODERS = {
    "smollm2_135m": SMOLLM2
    | dict(hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3),
    "smollm2_360m": SMOLLM2
    | dict(hidden_size=960, intermediate_size=2560, num_layers=32, num_heads=15, num_kv_heads=5),
    "qwen2_5_0_5b": dict(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=151_936,
        tie_embeddings=True,
    ),
    "smoke": dict(
        hidden_size=64,
        intermediate_size=96,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=640,
        max_position=2048,
    ),
}
SIGLIP_B = dict(
    init_from="checkpoints/siglip-base-patch16-224",
    image_size=224,
    patch_size=16,
    hidden_size=768,
    intermediate_size=3072,
    num_layers=12,
    num_heads=12,
    dtype="bfloat16",
)
STEPS = dict(image=1000, video=2000, sft=800)


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a decoder, with or without a teacher and clips of one's own."""
    args = parse_arg(arg, decoder="smollm2_135m", guidance="none", own="")
    decoder = choose("decoder", args["decoder"], tuple(DECODERS))
    guidance = choose("guidance", args["guidance"], ("none", "siglip"))
    smoke = decoder == "smoke"
    c = schema.base()
    c.name = f"small-{decoder}"
    if not smoke:
        c.init_from = f"checkpoints/{decoder}"
        c.tokenizer = f"checkpoints/{decoder}/tokenizer"
    c.model.update(DECODERS[decoder])
    c.model.update(patch_size=PATCH, patch_width=1024, remat="full")
    half = c.model.num_layers // 2
    c.model.merge_layers = (1, half // 2 + 1, half + 1)
    c.model.merge_policies = ("threshold", "both", "both")
    c.model.merge_thresholds = (0.6, 0.6, 0.6)
    c.model.merge_ratios = (1.0, 0.5, 0.5)
    c.curriculum = ("image", "video", "sft")
    c.stages.image = stage(STEPS["image"], {"images": schema.source(DATA, "image")}, frames=1)
    videos = {
        "images": schema.source(DATA, "image", weight=1.0),
        "videos": schema.source(DATA, "train", weight=3.0),
    }
    if args["own"]:
        videos["own"] = schema.source(args["own"], weight=1.0)
    c.stages.video = stage(STEPS["video"], videos, frames=FRAMES)
    c.stages.sft = stage(STEPS["sft"], videos, frames=FRAMES)
    c.stages.sft.merging = True
    c.stages.sft.optimizer.learning_rate = 5e-5
    if guidance == "siglip":
        c.teacher.update(SIGLIP_B)
        for name in ("image", "video"):
            c.stages[name].loss.update(tube=1.0, contrastive=1.0)
    if smoke:
        shrink(c)
    return c


def stage(steps: int, mixture: dict, *, frames: int) -> schema.ConfigDict:
    """A stage; a row holds four videos of 8 frames with their questions, or 32 pictures."""
    s = schema.stage()
    s.steps = steps
    s.batch_size = 16
    s.data.mixture = schema.ConfigDict(mixture)
    s.data.num_frames = frames
    s.data.longest_edge = EDGE
    s.data.upscale = True  # moving_shapes has frames of 64 pixels and more
    s.data.seq_len = 3072
    s.data.max_patches = 2048
    s.data.max_frames = 32
    s.optimizer.learning_rate = 2e-4
    s.optimizer.warmup_ratio = 0.03
    s.eval.every = 500
    s.eval.mixture.videos = schema.source(DATA, "validation")
    return s


def shrink(c: schema.ConfigDict) -> None:
    """A form for tests: two steps of two short rows on whatever data set there is."""
    c.model.update(patch_width=64, dtype="float32", remat="none")
    c.log.every = 1
    for s in c.stages.values():
        s.steps = s.batch_size = 2
        s.eval.every = 0
        s.data.update(seq_len=1024, max_patches=640, max_frames=10)
