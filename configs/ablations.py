"""The paper's ablations: `configs/ablations.py:variant=NAME,size=tiny|1_5b|7b`.

Table 2: table2_gen, table2_gen_mse, table2_gen_con, table2_all.
Table 3: table3_naive, table3_video.
Table 4: table4_siglip, table4_eva_clip, table4_siglip_video, table4_eva_clip_video (the teacher is
trained on video clips after images; at the paper's sizes it is another checkpoint), table4_dinov2,
table4_vivit, table4_languagebind and table4_hiera, which see clips; or several teachers joined by
+, such as table4_siglip+dinov2. A tiny run trains the first teacher itself, and reads each further
one from the run of that one's own variant, such as runs/table4_dinov2.
Figure 3: figure3_merge_R, where R is the percentage of tokens that each deep merging layer keeps:
75, 50, 25, 12; figure3_pool_R, where temporal pooling right after the patch embedding keeps that
percentage of each grid position's tokens instead (at least one).
Table 5: baseline_encoder, a Video-LLM with a frozen vision tower and an MLP projector, on the same
data with L_gen alone. Its tower is the tiny run's teacher, or has the shape of CLIP-ViT-L/14-336.
"""

from elva_jax.config import schema
from elva_jax.config.load import choose, parse_arg, sibling
from elva_jax.errors import ConfigError

TABLE2 = {
    "table2_gen": (0.0, 0.0),
    "table2_gen_mse": (1.0, 0.0),
    "table2_gen_con": (0.0, 1.0),
    "table2_all": (1.0, 1.0),
}
TABLE3 = {"table3_naive": "naive", "table3_video": "video"}
TABLE4 = "table4_"
MERGE = {f"figure3_merge_{percent}": percent / 100 for percent in (75, 50, 25, 12)}
POOL = {f"figure3_pool_{percent}": percent / 100 for percent in (75, 50, 25, 12)}
VARIANTS = (*TABLE2, *TABLE3, *MERGE, *POOL, "baseline_encoder")
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
    variant, towers = args["variant"], sibling(__file__, "towers")
    names = variant.removeprefix(TABLE4).split("+") if variant.startswith(TABLE4) else []
    if len(names) < 2:
        singles = tuple(TABLE4 + name for name in towers.TOWERS)
        variant = choose("variant", variant, (*VARIANTS, *singles))
    for name in names:
        choose(f"a tower of {variant}", name, towers.TOWERS)
    if len(set(names)) < len(names):
        raise ConfigError(f"variant: {variant} names a tower twice")
    size = choose("size", args["size"], ("tiny", "1_5b", "7b"))
    c = (
        sibling(__file__, "tiny").get_config()
        if size == "tiny"
        else sibling(__file__, "elva").get_config(f"size={size}")
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
    if names and size == "tiny":
        _tiny_teachers(c, names, towers)
    elif names:
        _set_teachers(c, {name: towers.real(name) for name in names})
    return c


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


def _set_teachers(c, towers) -> None:
    """One tower is the group `teacher`; several are the group `teachers`."""
    c.teacher = next(iter(towers.values()))
    if len(towers) > 1:
        c.teachers = schema.ConfigDict(
            {name: t.copy_and_resolve_references() for name, t in towers.items()}
        )


def _tiny_teachers(c, names, towers) -> None:
    """Trains the first tower on captions in this run; each further one comes from its own run."""
    chosen = {name: towers.tiny(name) for name in names}
    for name in names[1:]:
        chosen[name].init_from = f"runs/{TABLE4}{name}/{_last_stage(name)}"
    _set_teachers(c, chosen)
    first, tiny = c.teacher, sibling(__file__, "tiny")
    stages = [c.stages.teacher]
    if names[0].endswith("_video"):
        c.stages.teacher_video = tiny.teacher_stage(c.stages.teacher.steps)
        c.curriculum = ("teacher", "teacher_video", *c.curriculum[1:])
        stages.append(c.stages.teacher_video)
    for stage in stages[1:] if first.num_frames == 1 else stages:
        videos = schema.source(tiny.DATA, "train", tasks=("caption",))
        stage.data.mixture = schema.ConfigDict({"videos": videos})
        stage.data.num_frames = max(first.num_frames, tiny.FRAMES)
    if first.kind != "siglip":
        for stage in stages:
            stage.contrast.loss = "infonce"
        c.text_tower.update(kind="bert", hidden_size=64, intermediate_size=192, num_layers=2)
        c.text_tower.update(num_heads=4, max_position=first.text_length, pooling="mean")


def _last_stage(name: str) -> str:
    """The stage of a tower's own run that trains it last."""
    return "teacher_video" if name.endswith("_video") else "teacher"
