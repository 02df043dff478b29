"""Data scale: the whole of moving_shapes against parts of it, for the same number of steps."""

from elva_jax.tools.study import Study, Variant

# The first share of the pictures of several objects and of the clips of several objects.
PARTS = {"all": (100, 100), "half": (65, 60), "a quarter": (48, 40), "a tenth": (37, 28)}


def get_study() -> Study:
    """The study."""
    variants = {}
    for name, (image, video) in PARTS.items():
        several, videos = f"image[30%:{image}%]", f"train[20%:{video}%]"
        variants[name] = Variant(
            overrides={
                "stages.image.data.mixture.images.split": several,
                **{
                    f"stages.{stage}.data.mixture.images.split": several
                    for stage in ("video", "sft")
                },
                **{
                    f"stages.{stage}.data.mixture.videos.split": videos
                    for stage in ("video", "sft")
                },
            }
        )
    return Study(
        config="configs/tiny.py",
        question="What do fewer pictures and videos cost at the same number of steps?",
        variants=variants,
        note="The paper's data grow from hundreds of thousands to millions; here they shrink from"
        " 16,800 to 1,700, and what is left is seen more often.",
    )
