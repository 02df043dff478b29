"""Opening a trained model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jax.sharding import Mesh

from elva_jax.checkpoints.source import ParamSource
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.hf.open_model import opening_source
from elva_jax.inference.load_weights import See, compute_type, load_weights, watched
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.quantization import Scheme, check_scheme, quantizing


def load(
    path_or_hub: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    mesh: Mesh | None = None,
    stage: str | None = None,
    weights: Scheme | None = None,
    prefill_chunk: int | None = None,
) -> ElvaModel:
    """Loads a trained model.

    Args:
      path_or_hub: a run's workdir, one stage in it, one saved step, a converted checkpoint, or a
        Hugging Face folder or hub name of an exported ELVA.
      dtype: the compute type; None: the run's.
      mesh: devices over which the parameters and every batch are split, with axes named data, fsdp
        or tensor; None: the first device. Those of several processes: each reads what its own
        devices hold, and all call the same methods with the same arguments in the same order.
      stage: of a run's workdir, the stage whose weights and data settings are taken; None: the last
        one that has been started.
      weights: int8 or int4: quantizes the decoder's matrices and the vocabulary's tables, which
        takes a half or a third of bfloat16's memory (docs/guides/quantization.md); None: they are
        in the compute type.
      prefill_chunk: tokens of a prompt that prefill takes at a time, which bounds its memory; 0:
        all; None: all of up to 16,384, and 4,096 of a longer prompt.

    Raises:
      CheckpointError: nothing to load there, or it is damaged.
      ConvertError: a folder of another kind, or a damaged one.
      ConfigError: a stage that the run does not have, a mesh axis of another name, another value
        of `weights`, or Qwix, which int8 and int4 need, is not installed.

    Example:
      >>> import tempfile
      >>> import elva_jax
      >>> from elva_jax import testing
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     testing.tiny_model().save_pretrained(f"{folder}/tiny")
      ...     model = elva_jax.load(f"{folder}/tiny", dtype="float32")
      >>> model.answer(testing.tiny_video(), "What moves?", max_new_tokens=4)
      '...'
    """
    if weights is not None:
        check_scheme(weights)  # before anything is read
    path = Path(path_or_hub)
    if stage is not None and (path / stage / "checkpoints").is_dir():
        path_or_hub = path / stage
    with opening_source(path_or_hub) as source:
        return load_source(
            source,
            dtype=dtype,
            mesh=mesh,
            stage=stage,
            weights=weights,
            prefill_chunk=prefill_chunk,
        )


def load_source(
    source: ParamSource,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    mesh: Mesh | None = None,
    stage: str | None = None,
    weights: Scheme | None = None,
    prefill_chunk: int | None = None,
    see: See | None = None,
) -> ElvaModel:
    """`load` from a source that is open.

    `see` is called with every tensor in the type of the source; see `load_weights`.
    """
    config = source.config
    if dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    keep = quantizing(config.model, weights) if weights else None
    if see is not None:
        keep = watched(see, keep or compute_type(config.model))
    tokenizer = load_tokenizer(config, source.tokenizer_dir)
    found = load_weights(source, config.model, mesh, keep)
    return ElvaModel(
        config, found, tokenizer, stage or source.stage, mesh=mesh, prefill_chunk=prefill_chunk
    )
