"""Published checkpoints of MERV (arXiv 2501.01426): projectors, fusion and decoder.

    NAME/config.json                          the run's settings, of which the encoders are read
    NAME/checkpoints/latest-checkpoint.pt     {"model": {"projectors": ..., "feature_fusion": ...,
                                                         "llm_backbone": ...}}

or latest-checkpoint.safetensors with the same tensors, named "projectors.0.projector…" and so on.
The encoders are not in it: they come from folders of their own, `encoders.NAME.init_from`. Nor are
the shapes of the decoder, so that a configuration is needed. The value and the output projection
of the fusion's attention do not touch its result; they are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from elva_jax.checkpoints.wanted import load_tower
from elva_jax.config.merv import RANDOM
from elva_jax.config.schema import Config, ModelConfig
from elva_jax.config.teachers import with_teacher
from elva_jax.errors import ConvertError
from elva_jax.hf import qwen2
from elva_jax.hf.load import load_params
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.pickles import unpickle
from elva_jax.hf.safetensors_io import read_header
from elva_jax.hf.tensor_store import TensorStore, entries_of, read_json, refuse_pickle
from elva_jax.models.merv.fusion import CHANNELS

Value = TypeVar("Value")

FOLDER, LATEST = "checkpoints", "latest-checkpoint"
# Names in "model", and what they are in earlier checkpoints, which have a single encoder.
GROUPS = ("projectors", "feature_fusion", "llm_backbone", "projector", "adapter")
EARLIER = {"projector.": "projectors.0.", "adapter.": "feature_fusion."}
PROJECTOR = "projectors.{}.projector.projector"
# How the names of encoders in config.json begin -> teacher.kind.
ENCODERS = ("languagebind", "dinov2", "vivit", "siglip", "hiera")
# A fusion's tensor -> model.merv.fusion; sequence has none.
FUSIONS = {
    "feature_fusion.Q": "attention",
    "feature_fusion.scalar": "scalar",
    "feature_fusion.projector.weight": "channels",
    "feature_fusion.0.weight": "channels_norm",
}
CHANNELS_AFTER_NORM = "feature_fusion.1.projector"
DEAD = (r"feature_fusion\.attention\.(v_proj_weight|out_proj\.(weight|bias))",)


def find_checkpoint(source: str | Path) -> Path | None:
    """The file of weights in the folder of a published checkpoint; None: it is no such folder."""
    folder = Path(source) / FOLDER
    latest = [folder / f"{LATEST}{suffix}" for suffix in (".safetensors", ".pt")]
    found = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    return next((file for file in (*latest, *reversed(found)) if file.is_file()), None)


def open_checkpoint(file: Path, model: ModelConfig, *, allow_pickle: bool) -> TensorStore:
    """The tensors of a published checkpoint under their present names.

    Raises:
      ConvertError: no allow_pickle, a damaged file, other encoders than the model's, or projectors
        and fusions that the model does not have.
    """
    safe = file.suffix == ".safetensors"
    if not safe and not allow_pickle:
        refuse_pickle(file)
    _check_encoders(file.parents[1] / "config.json", model)
    tensors = None if safe else _present_names(unpickle(file, GROUPS))
    entries = _present_names(read_header(file)) if tensors is None else entries_of(file, tensors)
    if not any(name.startswith(tuple(f"{group}." for group in GROUPS)) for name in entries):
        raise ConvertError(f"{file}: holds no 'model' with projectors and llm_backbone of a MERV")
    store = TensorStore(file, {}, entries, tensors)
    _check_parts(store, model)
    return store


def table(model: ModelConfig) -> Table:
    """The names of a published checkpoint's tensors."""
    rules = [*_projector_rules(model), *_decoder_rules(model), *_fusion_rules(model.merv.fusion)]
    ignored = (*DEAD, r"llm_backbone\..*rotary_emb\.inv_freq")
    return Table(tuple(rules), ignored=ignored)


def load_encoders(
    config: Config, targets: Mapping[str, jax.ShapeDtypeStruct], *, allow_pickle: bool
) -> dict[str, jax.Array]:
    """The parameters of encoders that have an `init_from`, by path in the model.

    Raises:
      ConvertError: a folder that is damaged or does not fit.
      CheckpointError: a run or converted checkpoint that is damaged or does not fit.
    """
    load = functools.partial(load_params, allow_pickle=allow_pickle)
    out: dict[str, jax.Array] = {}
    for name, encoder in config.model.encoders:
        if encoder.init_from not in ("", RANDOM):
            at, alone = f"elva/patch_embed/tower_{name}/", with_teacher(config, encoder)
            owner = f"the run's encoders.{name}"
            out |= load_tower(load, encoder.init_from, alone, targets, at, owner)
    return out


def _present_names(values: Mapping[str, Value]) -> dict[str, Value]:
    def present(name: str) -> str:
        group, dot, rest = name.partition(".")
        return EARLIER.get(group + dot, group + dot) + rest

    return {present(name): value for name, value in values.items()}


def _projector_rules(model: ModelConfig) -> Iterator[Rule]:
    for k, (name, _) in enumerate(model.encoders):
        ours, theirs = f"patch_embed/projector_{name}", PROJECTOR.format(k)
        yield Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR)
        yield Rule(f"{ours}/bias", f"{theirs}.bias")


def _fusion_rules(fusion: str) -> Iterator[Rule]:
    ours, theirs = "patch_embed/fusion/", "feature_fusion.attention."
    if fusion == "scalar":
        yield Rule(f"{ours}scores", "feature_fusion.scalar")
    if fusion == "channels_norm":
        yield Rule(f"{ours}norm/scale", "feature_fusion.0.weight")
        yield Rule(f"{ours}norm/bias", "feature_fusion.0.bias")
    if fusion in CHANNELS:
        projector = "feature_fusion.projector" if fusion == "channels" else CHANNELS_AFTER_NORM
        yield Rule(f"{ours}proj/kernel", f"{projector}.weight", LINEAR)
        yield Rule(f"{ours}proj/bias", f"{projector}.bias")
    if fusion != "attention":
        return
    yield Rule(f"{ours}query", "feature_fusion.Q")
    for k, name in enumerate("qk"):
        yield Rule(f"{ours}{name}_kernel", f"{theirs}{name}_proj_weight", LINEAR)
        # Of queries, keys and values.
        yield Rule(f"{ours}{name}_bias", f"{theirs}in_proj_bias", part=(k, 3))


def _decoder_rules(model: ModelConfig) -> Iterator[Rule]:
    """Those of a Llama or Qwen2, as the projection of an attention may have a bias or not."""
    for rule in qwen2.RULES:
        no_bias = rule.ours.endswith("/bias") and not model.attention_bias
        yield dataclasses.replace(rule, theirs=f"llm_backbone.llm.{rule.theirs}", optional=no_bias)


def _check_encoders(file: Path, model: ModelConfig) -> None:
    """Compares the encoders of a config.json with the model's.

    Towers of one width would otherwise take each other's projector without a word.
    """
    ours = [encoder.kind for _, encoder in model.encoders]
    for names in _lists_of_encoders(read_json(file)) if file.is_file() else ():
        theirs = [next(kind for kind in ENCODERS if name.startswith(kind)) for name in names]
        if theirs != ours:
            raise ConvertError(
                f"{file}: has the encoders {', '.join(names)}, the run has model.merv.encoders of"
                f" the kinds {', '.join(ours)}; give them in that order"
            )


def _lists_of_encoders(value: Any) -> Iterator[list[str]]:
    """The lists in JSON that name encoders only, wherever they are."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _lists_of_encoders(inner)
    elif isinstance(value, list) and value:
        named = [isinstance(name, str) and name.startswith(ENCODERS) for name in value]
        yield from [value] if all(named) else []


def _check_parts(store: TensorStore, model: ModelConfig) -> None:
    """Refuses projectors and fusions that the tables cannot say."""
    _check_fusion(store, model.merv.fusion)
    parts = [name.split(".") for name in store.names() if name.startswith("projectors.")]
    if other := sorted({part[2] for part in parts if len(part) > 2} - {"projector"}):
        raise ConvertError(
            f"{store.path}: its projectors have {', '.join(other)}; only averages with one linear"
            " layer can be read"
        )
    count = len({part[1] for part in parts})
    if count != len(model.encoders):
        raise ConvertError(
            f"{store.path}: has projectors for {count} encoders, the run has"
            f" {len(model.encoders)} in model.merv.encoders"
        )


def _check_fusion(store: TensorStore, fusion: str) -> None:
    held = [name for name in store.names() if name.startswith("feature_fusion.")]
    found = next((kind for name, kind in FUSIONS.items() if name in held), "")
    if held and not found:
        raise ConvertError(
            f"{store.path}: its fusion has {held[0]}; only attention by one query, scalar weights,"
            " and channels through one linear layer, with or without a norm, can be read"
        )
    found = found or "sequence"
    if found != fusion:
        raise ConvertError(
            f"{store.path}: its fusion is {found}, the run has model.merv.fusion = {fusion}; set"
            f" that to {found}"
        )
