"""The paper's ablations: `configs/ablations.py:variant=NAME,size=tiny|1_5b|7b`.

Table 2: table2_gen, table2_gen_mse, table2_gen_con, table2_all.
Table 3: table3_naive, table3_video.
Table 4: table4_siglip, table4_siglip_video (the teacher is trained on video clips after images; at
the paper's sizes it is another checkpoint).
Figure 3: figure3_merge_R, where R is the percentage of tokens that each deep merging layer keeps:
75, 50, 25, 12; figure3_pool_R, where temporal pooling right after the patch embedding keeps that
percentage of each grid position's tokens instead (at least one).
Table 5: baseline_encoder, a Video-LLM with a frozen vision tower and an MLP projector, on the same
data with L_gen alone. Its tower is the tiny run's teacher, or has the shape of CLIP-ViT-L/14-336.
"""

import importlib.util
from pathlib import Path

from elva_jax.config import schema
from elva_jax.config.load import choose, parse_arg

TABLE2 = {
    "table2_gen": (0.0, 0.0),
    "table2_gen_mse": (1.0, 0.0),
    "table2_gen_con": (0.0, 1.0),
    "table2_all": (1.0, 1.0),
}
TABLE3 = {"table3_naive": "naive", "table3_video": "video"}
TABLE4 = ("table4_siglip", "table4_siglip_video")
MERGE = {f"figure3_merge_{percent}": percent / 100 for percent in (75, 50, 25, 12)}
POOL = {f"figure3_pool_{percent}": percent / 100 for percent in (75, 50, 25, 12)}
VARIANTS = (*TABLE2, *TABLE3, *TABLE4, *MERGE, *POOL, "baseline_encoder")
CLIP_L = dict(
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
)


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a variant at a size."""
    args = parse_arg(arg, variant="table2_gen_mse", size="tiny")
    variant = choose("variant", args["variant"], VARIANTS)
    size = choose("size", args["size"], ("tiny", "1_5b", "7b"))
    c = (
        _sibling("tiny").get_config()
        if size == "tiny"
        else _sibling("elva").get_config(f"size={size}")
    )
    c.name = f"{variant}-{size}"
    # The paper's ablations train with L_gen + L_MSE unless the row says otherwise.
    tube, contrastive = TABLE2.get(variant, (1.0, 0.0))
    for stage in c.stages.values():
        if stage.loss.tube or stage.loss.contrastive:
            stage.loss.tube *= tube
            stage.loss.contrastive *= contrastive
    c.model.patch_embed = TABLE3.get(variant, "video")
    if variant in MERGE:
        m = c.model
        _merging(
            c,
            m.merge_layers,
            m.merge_policies,
            m.merge_thresholds,
            _kept(m.merge_policies, MERGE[variant]),
        )
    if variant in POOL:
        _merging(c, (0,), ("pool",), (1.0,), (POOL[variant],))
    if variant == "baseline_encoder":
        _encoder(c, size)
    if variant == "table4_siglip_video":
        _video_teacher(c, size)
    return c


def _sibling(name: str):
    """Loads the config file of that name beside this one."""
    spec = importlib.util.spec_from_file_location(
        f"elva_config_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _kept(policies, ratio: float) -> tuple[float, ...]:
    """The ratio of every deep merging layer; the shallow ones keep their threshold."""
    return tuple(ratio if policy != "threshold" else 1.0 for policy in policies)


def _merging(c, layers, policies, thresholds, ratios) -> None:
    """Replaces the merging layers, and removes the buckets, which fit those of configs/elva.py."""
    m = c.model
    for stage in c.stages.values():
        stage.merge_buckets = ()
    m.merge_layers, m.merge_policies, m.merge_thresholds, m.merge_ratios = (
        layers,
        policies,
        thresholds,
        ratios,
    )


def _encoder(c, size: str) -> None:
    """Makes the teacher part of the model; a sequence holds as many frames as it does of ELVA's."""
    m, t, patch = c.model, c.teacher, c.model.patch_size
    if size != "tiny":
        t.update(CLIP_L)
        t.init_from = "checkpoints/siglip-large-patch14-336"
    m.patch_embed, m.patch_size = "encoder", t.patch_size
    _merging(c, (), (), (), ())
    bare = (t.image_size // t.patch_size) ** 2
    for stage in (stage for stage in c.stages.values() if stage.kind == "elva"):
        data, side = stage.data, stage.data.longest_edge // patch
        data.max_frames = data.max_patches // side**2
        data.max_patches = data.max_frames * bare
        data.seq_len += data.max_frames * (bare - (side**2 + side + 1))
        stage.merging = False
        stage.loss.update(tube=0.0, contrastive=0.0)
        stage.optimizer.freeze = ("^elva/patch_embed/tower/",)


def _video_teacher(c, size: str) -> None:
    if size != "tiny":
        c.teacher.init_from += "-video"
        return
    tiny = _sibling("tiny")
    c.stages.teacher_video = tiny.teacher_stage(c.stages.teacher.steps)
    c.stages.teacher_video.data.mixture = schema.ConfigDict(
        {"videos": schema.source(tiny.DATA, "train", tasks=("caption",))}
    )
    c.stages.teacher_video.data.num_frames = 4
    c.curriculum = (
        "teacher",
        "teacher_video",
        *(name for name in c.curriculum if name != "teacher"),
    )
