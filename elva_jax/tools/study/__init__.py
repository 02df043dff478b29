"""`elva study`: training runs over variants and seeds, compared with intervals."""

from elva_jax.tools.study.describe import Study, Variant

__all__ = ["Study", "Variant"]
