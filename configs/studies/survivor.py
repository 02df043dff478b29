"""ELVA's last-member survivor against FrameFusion's first (arXiv 2501.01986)."""

from elva_jax.config.load import sibling
from elva_jax.tools.study import Study, Variant

VIDEO = sibling(__file__, "_shared").VIDEO


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/tiny.py",
        question="Should the mean of a run of merged tokens stand at its last or its first member?",
        variants={
            "video": VIDEO,
            **{
                name: Variant(
                    after="video", overrides={"curriculum": ("sft",), "model.merge_survivor": name}
                )
                for name in ("last", "first")
            },
        },
        note="A mean at the first member lets earlier frames of a clip see content of later ones.",
    )
