"""The tensors of PyTorch's own files."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from elva_jax.errors import ConvertError, first_line


def unpickle(file: Path, groups: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file; no code in it is run.

    Args:
      file: the file.
      groups: names of dictionaries of tensors, where the file holds several; their tensors are
        named "group.name", and all else in the file is left out.

    Raises:
      ConvertError: the file holds more than tensors, or is damaged.
    """
    import torch  # noqa: PLC0415 (optional)

    try:
        held = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConvertError(
            f"{file}: holds more than tensors, or is damaged ({first_line(error)})"
        ) from error
    for key in ("state_dict", "model", "module", "model_state"):
        held = held[key] if isinstance(held, dict) and isinstance(held.get(key), dict) else held
    if groups and isinstance(held, dict):
        found = {key: held[key] for key in groups if isinstance(held.get(key), dict)}
        held = {f"{key}.{name}": value for key in found for name, value in found[key].items()}
    if not isinstance(held, dict) or not all(
        isinstance(value, torch.Tensor) for value in held.values()
    ):
        raise ConvertError(f"{file}: is not a dictionary of tensors; save a model's state_dict()")
    out = {}
    for name, value in held.items():
        tensor = value.detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # NumPy lacks it, PyTorch lacks ml_dtypes
            out[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            out[name] = tensor.numpy()
    return out
