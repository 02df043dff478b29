"""Merging on, off, and on only at inference."""

from elva_jax.config.load import sibling
from elva_jax.tools.study import Study, Variant

VIDEO = sibling(__file__, "_shared").VIDEO


def get_study() -> Study:
    """The study."""
    tuned = {"curriculum": ("sft",)}
    return Study(
        config="configs/tiny.py",
        question="What does merging cost, and must a model be trained with it?",
        variants={
            "video": VIDEO,
            "off": Variant(
                after="video",
                overrides={**tuned, "stages.sft.merging": False},
                evaluate={"merging": False},
            ),
            "on": Variant(after="video", overrides=tuned),
            "on at inference only": Variant(of="off", evaluate={"merging": True}),
            "off at inference only": Variant(of="on", evaluate={"merging": False}),
        },
    )
