"""Captions: short ones of single objects against dense ones of the whole scene."""

from elva_jax.tools.study import Study, Variant

STAGES = ("image",)
SHORT, DENSE = ("object", "open"), ("caption", "open")


def get_study() -> Study:
    """The study."""

    def tasks(*names: str) -> dict:
        return {f"stages.{stage}.data.mixture.images.tasks": names for stage in STAGES}

    return Study(
        config="configs/tiny.py",
        question="Do dense captions teach more than short ones (the paper's re-captioning)?",
        variants={
            "short": Variant(overrides=tasks(*SHORT)),
            "dense": Variant(overrides=tasks(*DENSE)),
            "both": Variant(overrides=tasks("object", "caption", "open")),
        },
    )
