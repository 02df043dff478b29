"""The quickstart over seeds: what its figures are, and how much they vary."""

from elva_jax.tools.study import Study, Variant

PACKED = ("image", "video", "sft")


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/tiny.py",
        question="What does the quickstart reach, and how much of it depends on the seed?",
        seeds=5,
        variants={
            # Beside it what can be known without the video, or from one frame.
            "quickstart": Variant(evaluate={"baselines": True}),
            # Another order of sums, as on a machine with another number of cores.
            "one core": Variant(environment={"NPROC": "1"}),
            # Other examples share a sequence.
            "another packing": Variant(
                overrides={f"stages.{name}.data.pack_lookahead": 12 for name in PACKED}
            ),
            "merging off at inference": Variant(of="quickstart", evaluate={"merging": False}),
        },
    )
