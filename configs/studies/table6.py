"""Table 6: mixtures of high- and low-resolution frames on long videos."""

from elva_jax.config.load import sibling
from elva_jax.tools.study import Study, Variant

VIDEO = sibling(__file__, "_shared").VIDEO
# Frames at 48 px (13 tokens) and at 32 px (7 tokens).
MIXTURES = ((2, 0), (2, 4), (4, 0), (4, 4), (4, 8), (8, 0))


def get_study() -> Study:
    """The study."""

    def asked(high: int, low: int) -> dict:
        if not low:
            return {"num_frames": high}
        return {"hybrid": {"high_frames": high, "low_frames": low, "low_edge": 32}}

    tuned = Variant(after="video", overrides={"curriculum": ("sft",)}, measured=False)
    mixed = {
        f"{high} + {low}": Variant(of="tuned", evaluate=asked(high, low)) for high, low in MIXTURES
    }
    return Study(
        config="configs/tiny.py",
        question="Do low-resolution frames beside few high ones help on long videos (Table 6)?",
        variants={"video": VIDEO, "tuned": tuned, **mixed},
        baseline="4 + 0",
        evaluate={"split": "long"},
        note="The tiny model is trained on four frames of one size: other numbers and sizes are new"
        " to it at inference, which those of the paper's model are not.",
    )
