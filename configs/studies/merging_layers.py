"""Where merging layers stand."""

from elva_jax.tools.study import Study, Variant

VIDEO = ("teacher", "objects", "image", "clips", "video")
PLACES = ((1, 2), (0, 1), (2, 3), (1, 3))  # before these of the four layers


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/tiny.py",
        question="Before which layers should tokens merge?",
        variants={
            "video": Variant(overrides={"curriculum": VIDEO}, measured=False),
            **{
                f"before {first} and {second}": Variant(
                    after="video",
                    overrides={"curriculum": ("sft",), "model.merge_layers": (first, second)},
                )
                for first, second in PLACES
            },
        },
    )
