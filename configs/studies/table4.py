"""Table 4: a teacher of pictures, and one that has seen video clips, too."""

from elva_jax.tools.study import Study, Variant


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/ablations.py:variant=table4_siglip,size=tiny",
        question="Is a teacher better that was trained on video clips after pictures (Table 4)?",
        variants={
            "siglip": Variant(),
            "siglip_video": Variant(
                config="configs/ablations.py:variant=table4_siglip_video,size=tiny"
            ),
        },
        note="The paper reports about one point for each benchmark.",
    )
