"""Where merging layers stand."""

from elva_jax.config.load import sibling
from elva_jax.tools.study import Study, Variant

VIDEO = sibling(__file__, "_shared").VIDEO
PLACES = ((1, 2), (0, 1), (2, 3), (1, 3))  # before these of the four layers


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/tiny.py",
        question="Before which layers should tokens merge?",
        variants={
            "video": VIDEO,
            **{
                f"before {first} and {second}": Variant(
                    after="video",
                    overrides={"curriculum": ("sft",), "model.merge_layers": (first, second)},
                )
                for first, second in PLACES
            },
        },
    )
