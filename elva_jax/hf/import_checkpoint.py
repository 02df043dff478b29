"""From a Hugging Face folder to a converted checkpoint, which `load_run` and `init_from` read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from elva_jax.checkpoints.restore import load_run, open_run
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.schema import Config, StageConfig
from elva_jax.config.serialize import config_to_dict, freeze, typed
from elva_jax.config.stages import stages_of_kind
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.data.tokenizer import CHAT_TEMPLATE, TURN_END, TURN_START
from elva_jax.errors import ConvertError
from elva_jax.hf import elva, merv
from elva_jax.hf.adapter import read_adapter
from elva_jax.hf.export import add_visual_tokens
from elva_jax.hf.load import is_hf_source, load_store, load_table, make_targets, read_config
from elva_jax.hf.open_model import STAGE, folder_config
from elva_jax.hf.tensor_store import TensorStore, open_store
from elva_jax.hf.write_store import refuse_occupied, whole_folder
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.read import opening
from elva_jax.utils.trees import flatten_paths, unflatten_paths

DTYPES = ("keep", "float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
CHAT = (TURN_START, TURN_END)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A summary of the checkpoint that was written."""

    origin: str  # a description of the source
    parameters: int
    dtype: str
    absent: tuple[str, ...]  # parts of our model that the source lacks; training initializes them
    nbytes: int  # size of the source's tensors


def import_weights(
    source: str | Path,
    out: str | Path,
    config: ConfigDict | Config | None = None,
    *,
    dtype: str = "keep",
    allow_pickle: bool = False,
    adapter: str | Path | None = None,
) -> Imported:
    """Writes a converted checkpoint: config.json, tokenizer/ and step 0 of a stage "converted".

    The host holds the parameters and a second copy of only one of them. If the process is killed,
    nothing is left at `out`.

    Args:
      source: a folder or hub name with a Qwen2, Llama, exported ELVA or vision tower (see
        `hf.load.TOWERS`), or with a published MERV. With an adapter, also a run or a converted
        checkpoint.
      out: a folder that does not exist yet, or is empty.
      config: the run configuration that the weights must fit; None: made from config.json.
      dtype: dtype of the weights on disk; keep: as in the source.
      allow_pickle: whether .bin and .pt files may be read.
      adapter: a folder or hub name with a LoRA adapter of PEFT, written as factors beside the
        matrices.

    Raises:
      ConvertError: a folder that is damaged, cannot be read or does not fit `config`, an adapter
        that does not fit the source, or an `out` that is not empty.
      CheckpointError: a run without a checkpoint, or a damaged one.
    """
    if dtype not in DTYPES:
        raise ConvertError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    target = Path(out).absolute()
    refuse_occupied(target)
    if file := merv.find_checkpoint(source):
        base = _read_merv(file, config, dtype, allow_pickle=allow_pickle)
    elif adapter is not None and not is_hf_source(source):
        base = _read_run(source, config, dtype)
    else:
        base = _read_folder(source, config, dtype, allow_pickle=allow_pickle)
    if adapter is not None:
        base = _put_on(base, adapter, dtype, allow_pickle=allow_pickle)
    with whole_folder(target) as temporary:
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(temporary / "tokenizer")
        text = json.dumps(config_to_dict(base.config), indent=2) + "\n"
        (temporary / "config.json").write_text(text)
        save_weights(temporary / STAGE, unflatten_paths(base.params), base.config, STAGE)
    return Imported(
        origin=base.origin,
        parameters=sum(leaf.size for leaf in base.params.values()),
        dtype=base.dtype,
        absent=base.absent,
        nbytes=base.nbytes,
    )


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The values to write, and the fields of `Imported`."""

    params: dict[str, Any]  # by '/'-joined path
    config: Config
    tokenizer: PreTrainedTokenizerBase | None
    origin: str
    dtype: str
    absent: tuple[str, ...] = ()
    nbytes: int


def _read_folder(
    source: str | Path, config: ConfigDict | Config | None, dtype: str, *, allow_pickle: bool
) -> _Base:
    """A Hugging Face folder."""
    store = open_store(source, allow_pickle=allow_pickle)
    group, values = read_config(store.config, str(store.path))
    subtree = "vision" if group == "teacher" else "elva"
    tokenizer = None if group == "teacher" else _tokenizer(store)
    config = _run_config(store, config, group, values, tokenizer)
    kept = _common_dtype(store) if dtype == "keep" else jnp.dtype(dtype)
    targets = make_targets(parameter_shapes(config, subtree), kept)
    loaded = load_store(store, targets, config, subtree=subtree)
    missing = targets.keys() - loaded.params.keys()
    return _Base(
        params=loaded.params,
        config=config,
        tokenizer=tokenizer,
        origin=loaded.origin,
        dtype=str(kept),
        absent=tuple(sorted({re.findall(r"^(?:elva/)?[^/]+", path)[0] for path in missing})),
        nbytes=store.nbytes,
    )


def _read_merv(
    file: Path, config: ConfigDict | Config | None, dtype: str, *, allow_pickle: bool
) -> _Base:
    """A published checkpoint of MERV, and the encoders that the configuration names."""
    if config is None or not freeze(config).model.encoders:
        raise ConvertError(
            f"{file}: is a MERV, whose settings are not in the file; give a configuration with"
            " model.patch_embed = merv, such as --config configs/merv.py"
        )
    model = freeze(config).model
    store = merv.open_checkpoint(file, model, allow_pickle=allow_pickle)
    config = _run_config(store, config, "model", {}, None)
    kept = _common_dtype(store) if dtype == "keep" else jnp.dtype(dtype)
    targets = make_targets(parameter_shapes(config, "elva"), kept)
    params = load_table(store, merv.table(model), "elva/", targets)
    params |= merv.load_encoders(config, targets, allow_pickle=allow_pickle)
    absent = {"/".join(path.split("/")[:3]) for path in targets.keys() - params.keys()}
    return _Base(
        params=params,
        config=config,
        tokenizer=load_tokenizer(config, config.tokenizer) if config.tokenizer else None,
        origin="MERV",
        dtype=str(kept),
        absent=tuple(sorted(absent)),
        nbytes=store.nbytes,
    )


def _read_run(source: str | Path, config: ConfigDict | Config | None, dtype: str) -> _Base:
    """A run or a converted checkpoint; its own LoRA factors are merged."""
    if config is not None:
        raise ConvertError(f"{source}: a run has its own configuration; leave --config out")
    run = open_run(source)
    dtypes = {} if dtype == "keep" else dict.fromkeys(run.shapes, jnp.dtype(dtype))
    params = flatten_paths(load_run(run.path, dtypes=dtypes).params)
    stage = run.config.stages[run.stage]
    return _Base(
        params=params,
        config=dataclasses.replace(run.config, stages={STAGE: stage}, curriculum=(STAGE,)),
        tokenizer=load_tokenizer(run.config, run.tokenizer_dir),
        origin=f"stage {run.stage}, step {run.step}",
        dtype=str(jnp.result_type(*(leaf.dtype for leaf in params.values()))),
        nbytes=sum(leaf.nbytes for leaf in params.values()),
    )


def _put_on(base: _Base, adapter: str | Path, dtype: str, *, allow_pickle: bool) -> _Base:
    """The same model with the factors of an adapter."""
    stage = base.config.stages[STAGE]
    if not stages_of_kind(base.config, "elva", among=(STAGE,)):
        raise ConvertError(f"{adapter}: its base is a decoder, not a vision tower")
    shapes = {path: leaf.shape for path, leaf in base.params.items()}
    read = read_adapter(adapter, shapes, allow_pickle=allow_pickle)
    kept = None if dtype == "keep" else jnp.dtype(dtype)
    factors = {path: jnp.asarray(leaf, kept) for path, leaf in read.factors.items()}
    optimizer = dataclasses.replace(stage.optimizer, lora=read.lora)
    stages = {STAGE: dataclasses.replace(stage, optimizer=optimizer)}
    return dataclasses.replace(
        base,
        params={**base.params, **factors},
        config=dataclasses.replace(base.config, stages=stages),
        origin=f"{base.origin}; adapter {adapter} of rank {read.lora.rank}",
    )


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    with contextlib.suppress(OSError):
        # Unlike getrusage's, this value starts from zero when a program is executed.
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_config(
    store: TensorStore,
    config: ConfigDict | Config | None,
    group: str,
    values: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Config:
    """The configuration to save: one stage that holds the weights.

    Its media settings are those of the last ELVA stage of `config`, or of the folder.
    """
    if config is not None:
        config = freeze(config)
        before = stages_of_kind(config, "elva")
        stage = config.stages[before[-1]] if before else StageConfig()
    elif store.config.get("model_type") == elva.MODEL_TYPE:
        config, name, _ = folder_config(store)
        stage = config.stages[name]
    else:
        config, stage = typed(Config, {group: values}), StageConfig()
        if tokenizer is not None:
            size = max(config.model.vocab_size, len(tokenizer))
            model = dataclasses.replace(config.model, vocab_size=size)
            config = dataclasses.replace(config, model=model)
    if tokenizer is not None and len(tokenizer) > config.model.vocab_size:
        raise ConvertError(
            f"{store.path}: with {elva.FRAME}, {elva.PATCH}, {elva.LINE} its tokenizer has"
            f" {len(tokenizer)} tokens; raise model.vocab_size from {config.model.vocab_size}"
        )
    if group == "teacher":
        stage = dataclasses.replace(stage, kind="teacher")
    return dataclasses.replace(config, stages={STAGE: stage}, curriculum=(STAGE,))


def _tokenizer(store: TensorStore) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, if it has one, with the tokens of chats and visual tokens added."""
    if not any((store.path / name).is_file() for name in TOKENIZER_FILES):
        return None
    # The config.json of an exported ELVA names Python code, which transformers would offer to run;
    # its tokenizer needs none.
    is_elva = store.config.get("model_type") == elva.MODEL_TYPE
    plain = {"config": PreTrainedConfig()} if is_elva else {}
    with opening(store.path, ConvertError, "its tokenizer is damaged; download it again"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(store.path), local_files_only=True, trust_remote_code=False, **plain
        )
    if missing := [token for token in CHAT if token not in tokenizer.get_vocab()]:
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False, special=True) for token in missing],
            special_tokens=True,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
    add_visual_tokens(tokenizer)
    return tokenizer


def _common_dtype(store: TensorStore) -> np.dtype:
    """The narrowest dtype that holds every floating-point tensor of a store."""
    dtypes = {store.dtype(name) for name in store.names()}
    return jnp.result_type(*(dtype for dtype in dtypes if dtype.kind in "fV"))
