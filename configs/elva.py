"""The paper's models: `configs/elva.py:size=1_5b|7b|7b_hd,stage=1|2|3` (Table 7).

Without `stage`, all three stages run in turn. Their data are listed in configs/data/, relative to a
folder of your own: `--config.data_root=FOLDER`.
"""

from pathlib import Path

from elva_jax.config import mixtures, schema
from elva_jax.config.load import choose, parse_arg

QWEN2 = {
    "1_5b": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        vocab_size=151_936,
        tie_embeddings=True,
    ),
    "7b": dict(
        hidden_size=3584,
        intermediate_size=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        vocab_size=152_064,
        tie_embeddings=False,
    ),
}


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a size and of one or all stages."""
    args = parse_arg(arg, size="7b", stage="all")
    size = choose("size", args["size"], ("1_5b", "7b", "7b_hd"))
    stage = choose("stage", args["stage"], ("1", "2", "3", "all"))
    hd = size == "7b_hd"
    c = schema.base()
    c.name = f"elva-{size}" + ("" if stage == "all" else f"-stage{stage}")
    model(c.model, size.removesuffix("_hd"))
    if hd:
        # 32 frames at 1344 px exceed Qwen2's 32k; its own long-context setting is YaRN by 4.
        c.model.rope_scaling = "yarn"
        c.model.rope_factor = 4.0
        c.model.max_position = 131_072
    c.mesh.fsdp = -1
    c.mesh.data = 1
    c.curriculum = ("stage1", "stage2", "stage3") if stage == "all" else (f"stage{stage}",)
    c.stages.stage1 = stage1()
    c.stages.stage2 = stage2()
    c.stages.stage3 = stage3(hd=hd)
    # Guidance needs the teacher's weights: a run of stage kind `teacher`, or a converted SigLIP.
    c.teacher.init_from = "checkpoints/siglip-so400m-patch14-384"
    c.teacher.dtype = "bfloat16"
    return c


def model(m, size: str) -> None:
    """Fills in one of the two decoders and the merging layers."""
    m.update(QWEN2[size])
    m.remat = "full"
    # These keep 0.30 of the visual tokens of redundant video, averaged over the 28 layers (paper,
    # Table 5): see docs/choices.md.
    m.merge_layers = (2, 8, 14)
    m.merge_policies = ("threshold", "both", "both")
    m.merge_thresholds = (0.6, 0.6, 0.6)
    m.merge_ratios = (1.0, 0.5, 0.5)


def data(name: str):
    """The mixture configs/data/NAME.yaml."""
    return mixtures.from_yaml(Path(__file__).parent / "data" / f"{name}.yaml")


def stage1() -> schema.ConfigDict:
    """Spatial alignment on images (Table 7)."""
    s = schema.stage()
    s.epochs = 1.0
    s.batch_size = 256
    s.data.mixture = data("stage1")
    s.data.num_frames = 1
    s.data.longest_edge = 448
    s.data.seq_len = 2048
    s.data.max_patches = 1792
    s.data.max_frames = 16
    s.loss.tube = 1.0
    s.loss.contrastive = 1.0
    s.optimizer.learning_rate = 4e-5
    s.optimizer.warmup_ratio = 0.03
    return s


def stage2() -> schema.ConfigDict:
    """Spatio-temporal alignment on images and videos (Table 7)."""
    s = stage1()
    s.epochs = 2.0
    s.data.mixture = data("stage2")
    s.data.num_frames = 16
    s.data.seq_len = 6144
    s.data.max_patches = 5120
    s.data.max_frames = 64
    s.optimizer.warmup_ratio = 0.01
    return s


def stage3(*, hd: bool) -> schema.ConfigDict:
    """Supervised fine-tuning with merging (Table 7)."""
    s = schema.stage()
    s.epochs = 1.0
    s.batch_size = 256 if hd else 128
    s.merging = True
    s.data.mixture = data("stage3_hd" if hd else "stage3")
    s.data.num_frames = 32
    s.data.longest_edge = 1344 if hd else 672
    s.data.seq_len = 81_920 if hd else 20_480
    s.data.max_patches = 75_264 if hd else 18_432
    s.data.max_frames = 128
    # At most so many tokens are left after layers 8 and 14, where half of the patches stay, if rows
    # are 95 % full: see docs/choices.md.
    s.merge_buckets = (0, 47_872, 30_720) if hd else (0, 13_312, 9728)
    s.optimizer.learning_rate = 2e-5
    s.optimizer.warmup_ratio = 0.01
    if hd:
        s.optimizer.accumulate = 8  # one of the 8 rows of each of 32 devices at a time
    return s
