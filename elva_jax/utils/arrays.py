"""Array types that annotations share."""

from __future__ import annotations

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray  # for functions that take NumPy's arrays as they are
