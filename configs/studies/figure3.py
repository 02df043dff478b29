"""Figure 3: merging inside the decoder against pooling before it, at four ratios."""

from elva_jax.config.load import sibling
from elva_jax.tools.study import Study, Variant

VIDEO = sibling(__file__, "_shared").VIDEO
KEPT = (75, 50, 25, 12)  # percent of the tokens that a deep merging layer, or pooling, keeps


def get_study() -> Study:
    """The study."""
    variants = {
        "video": VIDEO,
        "no compression": Variant(
            after="video",
            overrides={"curriculum": ("sft",), "stages.sft.merging": False},
            evaluate={"merging": False},
        ),
    }
    for percent in KEPT:
        for kind in ("merge", "pool"):
            variants[f"{kind} {percent}"] = Variant(
                after="video",
                config=f"configs/ablations.py:variant=figure3_{kind}_{percent},size=tiny",
                overrides={"curriculum": ("sft",)},
            )
    return Study(
        config="configs/tiny.py",
        question="Does hierarchical merging keep more than pooling where both are fine-tuned"
        " (Figure 3)?",
        variants=variants,
        note="Seconds of the evaluation and visual tokens kept stand in the last table.",
    )
