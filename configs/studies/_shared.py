"""Variants that several studies share, by `sibling(__file__, "_shared")`."""

from elva_jax.tools.study import Variant

# configs/tiny.py up to its stage of videos, from which the fine-tunings of a study start.
VIDEO = Variant(overrides={"curriculum": ("teacher", "image", "video")}, measured=False)
