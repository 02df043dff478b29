"""The paper's ablations: `configs/ablations.py:variant=NAME,size=tiny|1_5b|7b`.

Table 2: table2_gen, table2_gen_mse, table2_gen_con, table2_all. Table 3: table3_naive, table3_video.
Table 4: table4_siglip, table4_siglip_video (the teacher trained on video clips after images; for the paper's sizes another checkpoint).
Figure 3: figure3_merge_R, where R is the share of tokens that each deep merging layer keeps: 75, 50, 25, 12.
"""

import importlib.util
from pathlib import Path

from elva_jax.config import base
from elva_jax.config.load import choose, parse_arg

TABLE2 = {"table2_gen": (0.0, 0.0), "table2_gen_mse": (1.0, 0.0), "table2_gen_con": (0.0, 1.0), "table2_all": (1.0, 1.0)}
TABLE3 = {"table3_naive": "naive", "table3_video": "video"}
TABLE4 = ("table4_siglip", "table4_siglip_video")
FIGURE3 = {f"figure3_merge_{percent}": percent / 100 for percent in (75, 50, 25, 12)}
VARIANTS = (*TABLE2, *TABLE3, *TABLE4, *FIGURE3)


def get_config(arg: str = "") -> base.ConfigDict:
    args = parse_arg(arg, variant="table2_gen_mse", size="tiny")
    variant = choose("variant", args["variant"], VARIANTS)
    size = choose("size", args["size"], ("tiny", "1_5b", "7b"))
    c = _sibling("tiny").get_config() if size == "tiny" else _sibling("elva").get_config(f"size={size}")
    c.name = f"{variant}-{size}"
    # The paper's ablations train with L_gen + L_MSE unless the row says otherwise.
    tube, contrastive = TABLE2.get(variant, (1.0, 0.0))
    for stage in c.stages.values():
        if stage.loss.tube or stage.loss.contrastive:
            stage.loss.tube *= tube
            stage.loss.contrastive *= contrastive
    c.model.patch_embed = TABLE3.get(variant, "video")
    if variant in FIGURE3:
        _keep(c.model, FIGURE3[variant])
    if variant == "table4_siglip_video":
        _video_teacher(c, size)
    return c


def _sibling(name: str):
    """Loads the config file of that name beside this one."""
    spec = importlib.util.spec_from_file_location(f"elva_config_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _keep(m, ratio: float) -> None:
    """Sets every deep merging layer's ratio; the shallow ones stay on their threshold."""
    m.merge_ratios = tuple(ratio if policy != "threshold" else 1.0 for policy in m.merge_policies)


def _video_teacher(c, size: str) -> None:
    if size != "tiny":
        c.teacher.init_from += "-video"
        return
    tiny = _sibling("tiny")
    c.stages.teacher_video = tiny.teacher_stage(c.stages.teacher.steps)
    c.stages.teacher_video.data.mixture = base.ConfigDict({"videos": base.source(tiny.DATA, "train", tasks=("caption",))})
    c.stages.teacher_video.data.num_frames = 4
    c.curriculum = ("teacher", "teacher_video", *(name for name in c.curriculum if name != "teacher"))
