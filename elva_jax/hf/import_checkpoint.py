"""From a Hugging Face folder to a converted checkpoint: what `load_run` and `init_from` read, with its tokenizer."""

from __future__ import annotations

import contextlib
import json
import re
import resource
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from elva_jax.checkpoints.save import save_weights
from elva_jax.config import schema
from elva_jax.config.serialize import config_to_dict
from elva_jax.data.tokenizer import CHAT_TEMPLATE, TURN_END, TURN_START
from elva_jax.errors import ConvertError
from elva_jax.hf import elva, load
from elva_jax.hf.export import add_visual_tokens
from elva_jax.hf.safetensors_io import Store, open_store, refuse_occupied, whole_folder
from elva_jax.utils.trees import unflatten_paths

DTYPES = ("keep", "float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
CHAT = (TURN_START, TURN_END)


class Imported(NamedTuple):
    """What was written."""

    origin: str  # what the source is
    parameters: int
    dtype: str
    absent: tuple[str, ...]  # parts of our model that the source lacks; training initialises them
    nbytes: int  # of the source's tensors


def import_weights(
    source: str | Path,
    out: str | Path,
    config: ConfigDict | None = None,
    *,
    dtype: str = "keep",
    allow_pickle: bool = False,
) -> Imported:
    """Writes a converted checkpoint: config.json, tokenizer/ and the weights as step 0 of a stage "converted".

    Beyond the parameters themselves, one of them is in memory at a time. A kill leaves nothing at `out`.

    Args:
      source: a Hugging Face folder or a hub name: Qwen2, Llama, an exported ELVA, SigLIP, EVA-CLIP.
      out: a folder that does not exist yet, or is empty.
      config: the run configuration that the weights are for, which they must fit; None: one made from the folder's config.json.
      dtype: of the weights on disk; keep: as they are in the source.
      allow_pickle: whether .bin and .pt files may be read.

    Raises:
      ConvertError: a folder that is damaged, cannot be read or does not fit `config`, or an `out` with something in it.
    """
    if dtype not in DTYPES:
        raise ConvertError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    target = Path(out).absolute()
    refuse_occupied(target)
    store = open_store(source, allow_pickle=allow_pickle)
    group, values = load.read_config(store.config, str(store.path))
    kind = "teacher" if group == "teacher" else "elva"
    tokenizer = _tokenizer(store) if kind == "elva" else None
    config = _run_config(store, config, group, values, tokenizer)
    kept = _common_dtype(store) if dtype == "keep" else jnp.dtype(dtype)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(shape, kept, sharding=device)
        for name, shape in load.parameter_shapes(config, kind).items()
    }
    loaded = load.load_store(store, targets, config, kind=kind)
    with whole_folder(target) as temporary:
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / "tokenizer")
        (temporary / "config.json").write_text(json.dumps(config_to_dict(config), indent=2) + "\n")
        save_weights(temporary / load.STAGE, unflatten_paths(loaded.params), config, load.STAGE)
    absent = {
        re.match(r"(?:elva/)?[^/]+", path)[0] for path in targets.keys() - loaded.params.keys()
    }
    count = sum(leaf.size for leaf in loaded.params.values())
    return Imported(loaded.origin, count, str(kept), tuple(sorted(absent)), store.nbytes)


def peak_memory() -> int:
    """Most bytes that this process has had resident."""
    with contextlib.suppress(OSError):
        # Unlike getrusage, this begins anew with the program.
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_config(
    store: Store,
    config: ConfigDict | None,
    group: str,
    values: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> ConfigDict:
    """The configuration that is saved: of one stage that holds the weights, with the media settings of the last such stage."""
    if config is not None:
        config = config.copy_and_resolve_references()
        before = [name for name in config.curriculum if config.stages[name].kind == "elva"]
        stage = config.stages[before[-1]] if before else schema.stage()
    elif store.config.get("model_type") == elva.MODEL_TYPE:
        config, name, _ = load.folder_config(store)
        stage = config.stages[name]
    else:
        config, stage = schema.base(), schema.stage()
        config[group].update(values)
        if tokenizer is not None:
            config.model.vocab_size = max(config.model.vocab_size, len(tokenizer))
    if tokenizer is not None and len(tokenizer) > config.model.vocab_size:
        raise ConvertError(
            f"{store.path}: with {', '.join((elva.FRAME, elva.PATCH, elva.LINE))} its tokenizer has {len(tokenizer)} tokens;"
            f" raise model.vocab_size from {config.model.vocab_size}"
        )
    stage = ConfigDict(stage.to_dict())
    if group == "teacher":
        stage.kind = "teacher"
    config.stages = ConfigDict({load.STAGE: stage})
    config.curriculum = (load.STAGE,)
    return config


def _tokenizer(store: Store) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer with the tokens that conversations and visual tokens need, behind all others; None where it has none."""
    if not any((store.path / name).is_file() for name in TOKENIZER_FILES):
        return None
    # An exported ELVA's config.json names code of the model's, which transformers would ask to run; its tokenizer needs none.
    plain = (
        {"config": PreTrainedConfig()} if store.config.get("model_type") == elva.MODEL_TYPE else {}
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(store.path), local_files_only=True, **plain)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ConvertError(
            f"{store.path}: its tokenizer cannot be read ({reason}); fetch it again"
        ) from error
    if missing := [token for token in CHAT if token not in tokenizer.get_vocab()]:
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False, special=True) for token in missing],
            special_tokens=True,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
    add_visual_tokens(tokenizer)
    return tokenizer


def _common_dtype(store: Store) -> np.dtype:
    """The narrowest dtype that holds every floating tensor of a store."""
    dtypes = {store.dtype(name) for name in store.names()}
    return jnp.result_type(*(dtype for dtype in dtypes if dtype.kind in "fV"))
