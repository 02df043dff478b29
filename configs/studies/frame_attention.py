"""Frames whose tokens see each other in both directions, against causal ones."""

from elva_jax.tools.study import Study, Variant


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/tiny.py",
        question="Should the tokens of a frame attend to each other in both directions?",
        variants={
            name: Variant(overrides={"model.frame_attention": name, "model.attention": "xla"})
            for name in ("causal", "bidirectional")
        },
        note="Trained so over the whole curriculum.",
    )
