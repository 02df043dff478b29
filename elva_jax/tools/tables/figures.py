"""The paper's accuracies (arXiv 2503.18422), as rows of numbers by benchmark.

Benchmarks have the names of `evaluation.benchmarks.registry`. A number that is not known here is
absent: Tables 4, 6 and 10 and Figure 3 have claims alone. The rows of Table 1 come from published
summaries of the paper and are marked so. `tools.analysis.paper` has the costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from elva_jax.tools.analysis import paper

VIDEO = (
    "msvd_qa",
    "activitynet_qa",
    "video_chatgpt",
    "egoschema",
    "mvbench",
    "videomme",
    "mlvu",
    "cinepile",
)
IMAGE = ("gqa", "seed_image", "mme", "mmbench")
ABLATION = ("gqa", "seed_image", "msvd_qa", "videomme")  # of Table 2
# Short names, longest line 80 columns.
SHORT = {
    "msvd_qa": "MSVD-QA",
    "activitynet_qa": "ActivityNet-QA",
    "video_chatgpt": "Video-ChatGPT",
    "egoschema": "EgoSchema",
    "mvbench": "MVBench",
    "videomme": "Video-MME",
    "mlvu": "MLVU",
    "cinepile": "CinePile",
    "gqa": "GQA",
    "seed_image": "SEED image",
    "mme": "MME",
    "mmbench": "MMBench",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """A row of a table in the paper.

    Attributes:
      values: numbers by benchmark, each on the scale of its main metric.
      second_hand: whether they were read in a summary, not in the paper.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    second_hand: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper about the difference of two rows.

    Attributes:
      text: the statement in our words.
      more: the row that is better.
      less: the row that it is compared with.
      benchmarks: those that are meant; the mean over them is compared.
      points: the paper's difference; None: it gives no number.
      bound: whether the number is exact, a typical one or the largest one.
    """

    text: str
    more: str
    less: str
    benchmarks: tuple[str, ...]
    points: float | None = None
    bound: Literal["", "about", "up to"] = ""


def _row(names: tuple[str, ...], *values: float, second_hand: bool = False) -> Figures:
    return Figures(values=dict(zip(names, values, strict=True)), second_hand=second_hand)


_SUMMARIZED = ("msvd_qa", "activitynet_qa", "videomme", "mlvu", "cinepile")
TABLE1 = {
    "Video-LLaVA": _row(_SUMMARIZED, 70.7, 45.3, 39.9, 47.3, 22.5, second_hand=True),
    "VideoLLaMA2": _row(_SUMMARIZED, 70.9, 50.2, 46.6, 48.5, 44.6, second_hand=True),
    "Fuyu-8B": _row(_SUMMARIZED, 56.8, 28.8, 28.7, 31.1, 26.0, second_hand=True),
    "EVE-7B": _row(_SUMMARIZED, 61.4, 41.8, 29.3, 36.8, 26.4, second_hand=True),
    "ELVA-7B": _row(_SUMMARIZED, 65.2, 48.7, 47.1, 51.8, 46.1, second_hand=True),
}
TABLE2 = {
    "gen": _row(ABLATION, 42.2, 40.0, 45.8, 37.9),
    "gen_mse": _row(ABLATION, 43.6, 42.6, 47.1, 38.1),
    "gen_con": _row(ABLATION, 42.4, 41.0, 47.4, 38.5),
    "all": _row(ABLATION, 44.4, 44.8, 48.0, 38.5),
}
TABLE3 = {
    name: Figures(values={"msvd_qa": row.msvd, "videomme": row.videomme})
    for name, row in paper.TABLE3.items()
}
TABLE4 = {name: Figures() for name in ("siglip", "siglip_video", "eva_clip", "eva_clip_video")}
TABLE6 = {f"{high}+{low}": Figures() for high, low in paper.TABLE6}
TABLE10 = {"ELVA-7B": Figures()}
KEPT = (75, 50, 25, 12)  # percent of the tokens, by row of Figure 3
FIGURE3 = {f"{kind}_{percent}": Figures() for kind in ("merge", "pool") for percent in KEPT}

CLAIMS: dict[str, tuple[Claim, ...]] = {
    "table2": (
        Claim(
            text="both guidance losses, over the generation loss alone",
            more="all",
            less="gen",
            benchmarks=("seed_image",),
            points=4.8,
        ),
    ),
    "table3": (
        Claim(
            text="the video patch embedding, over a naive one",
            more="video",
            less="naive",
            benchmarks=("videomme",),
            points=2.6,
        ),
    ),
    "table4": tuple(
        Claim(
            text=f"{title} trained on video clips, too",
            more=f"{name}_video",
            less=name,
            benchmarks=ABLATION,
            points=1.0,
            bound="about",
        )
        for name, title in (("siglip", "SigLIP"), ("eva_clip", "EVA-CLIP"))
    ),
    "table6": tuple(
        Claim(
            text=f"{low} low-resolution frames beside 16 high ones",
            more=f"16+{low}",
            less="16+0",
            benchmarks=("videomme",),
            points=5.9,
            bound="up to",
        )
        for low in (8, 16)
    ),
    "fig3": tuple(
        Claim(
            text=f"merging, over pooling, where {percent} % of the tokens are kept",
            more=f"merge_{percent}",
            less=f"pool_{percent}",
            benchmarks=("videomme", "mlvu"),
        )
        for percent in KEPT
    ),
}
