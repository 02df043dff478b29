"""LoRA adapters in PEFT's layout: a folder of adapter_config.json and adapter_model.safetensors.

    y = x W + s x A B      theirs  lora_A [R, K], lora_B [N, R], one pair for each module
                           ours    a [layers, K, R], b [layers, R, N], one pair for each projection

PEFT scales by s = alpha / R, or alpha / sqrt(R) with `use_rslora`, and may choose R and alpha for
each module. Ours have one R and one alpha: a smaller R is padded with zeros, a scale that differs
is multiplied into b, and a module without factors has zeros.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from elva_jax.checkpoints.restore import SavedRun, open_run
from elva_jax.config.schema import LoraConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.export import DTYPES, cast_finite, check_dtype
from elva_jax.hf.param_mapping import group_by_layer
from elva_jax.hf.qwen2 import MODULES
from elva_jax.hf.tensor_store import ADAPTER_CONFIG, TensorStore, open_adapter
from elva_jax.hf.write_store import write_store
from elva_jax.ops.lora import SUFFIX
from elva_jax.utils.patterns import Matcher

LAYERS = "elva/decoder/layers"  # where the factors of a run are
ROOT = "base_model.model."  # PEFT's names begin with it
# Names as PEFT writes them: a wrapped language model, or its decoder alone.
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>(?:model\.)?layers\.(?P<layer>\d+)\.\w+\.(?P<name>\w+))"
    r"\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
READ = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "peft_type", "bias"),
    "init_lora_weights",
}
# Settings of PEFT's training, download and initialization, which trained factors do not depend on.
WITHOUT_EFFECT = {
    *("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"),
    *("peft_version", "lora_dropout", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "megatron_core", "runtime_config"),
    "ensure_weight_tying",
}
# Other initializations also change the base's matrices.
INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
MERGE = "merge it with PEFT (merge_and_unload) and import the whole model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in our layout."""

    lora: LoraConfig
    factors: dict[str, np.ndarray]  # by path: a [layers, K, R], b [layers, R, N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    """The factors of one module, with the names of their tensors."""

    a: str
    b: str
    rank: int
    alpha: float


def read_adapter(
    path: str | Path, base: Mapping[str, tuple[int, ...]], *, allow_pickle: bool = False
) -> Adapter:
    """Reads a LoRA adapter of PEFT for a model.

    Args:
      path: a folder or hub name.
      base: shapes of the model's parameters by '/'-joined path.
      allow_pickle: whether adapter_model.bin may be read.

    Raises:
      ConvertError: another kind of adapter, a setting that our factors cannot hold, a damaged
        file, or tensors that are missing, unexpected or do not fit the model.
    """
    store = open_adapter(path, allow_pickle=allow_pickle)
    settings, where = store.config, f"{store.path / ADAPTER_CONFIG}"
    _check_settings(settings, where)
    kernels = {name: shape for name in MODULES if (shape := base.get(f"{LAYERS}/{name}/kernel"))}
    pairs = _find_pairs(store, settings, kernels)
    rank = max(pair.rank for pair in pairs.values())
    root = bool(settings.get("use_rslora"))
    most, _ = Counter((pair.alpha, pair.rank) for pair in pairs.values()).most_common(1)[0]
    alpha = most[0] * (rank / (math.sqrt(most[1]) if root else most[1]))
    names = [name for name in MODULES if any(name == there for there, _ in pairs)]
    dtype = jnp.result_type(*(store.dtype(name) for p in pairs.values() for name in (p.a, p.b)))
    if any((pair.alpha, pair.rank) != most for pair in pairs.values()):
        dtype = np.dtype(np.float32)  # some are scaled below
    factors: dict[str, np.ndarray] = {}
    for name in names:
        layers, inputs, outputs = kernels[name]
        a = np.zeros((layers, inputs, rank), dtype)
        b = np.zeros((layers, rank, outputs), dtype)
        for layer in range(layers):
            if pair := pairs.get((name, layer)):
                a[layer, :, : pair.rank] = _read(store, pair.a).T
                b[layer, : pair.rank] = _read(store, pair.b).T
                if (pair.alpha, pair.rank) != most:
                    scale = pair.alpha / (math.sqrt(pair.rank) if root else pair.rank)
                    b[layer] *= scale * rank / alpha
        at = f"{LAYERS}/{name}{SUFFIX}"
        factors |= {f"{at}/a": a, f"{at}/b": b}
    lora = LoraConfig(rank=rank, alpha=alpha, targets=tuple(f"^{name}$" for name in names))
    return Adapter(lora=lora, factors=factors)


def export_adapter(run_path: str | Path, out: str | Path, *, dtype: str | None = None) -> None:
    """Writes the LoRA factors of a run, or of an imported adapter, as a folder for PEFT.

    Args:
      run_path: a run's workdir, one stage in it, or one saved step.
      out: a folder that does not exist yet, or is empty.
      dtype: dtype of the factors: float32, bfloat16 or float16; None: as they were saved.

    Raises:
      ConvertError: a run without factors, or with other trained parameters, factors that `dtype`
        cannot hold, or an `out` that is not empty.
      CheckpointError: no checkpoint there.
    """
    if dtype is not None:
        check_dtype(dtype)
    run = open_run(run_path)
    if not run.factors:
        raise ConvertError(
            f"{run.path}: stage {run.stage} has no LoRA factors; export the whole model, without"
            " --adapter-only"
        )
    lora = run.config.stages[run.stage].optimizer.lora
    if lora.also:
        raise ConvertError(
            f"{run.path}: stage {run.stage} trained {', '.join(lora.also)} too (lora.also), which"
            " an adapter cannot hold; export the whole model, without --adapter-only"
        )
    tensors = dict(_their_tensors(run, dtype))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": run.config.init_from or None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # Whole names: `q_proj` alone would also find the patch embedding's.
        "target_modules": sorted(
            {name.split(".", 2)[2].rpartition(".lora_")[0] for name in tensors}
        ),
    }
    write_store(
        out,
        tensors.items(),
        shard_bytes=2**62,  # PEFT reads one file
        files={ADAPTER_CONFIG: (json.dumps(settings, indent=2) + "\n").encode()},
        stem="adapter_model",
    )


def _their_tensors(run: SavedRun, dtype: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor; modules whose factors are all zero have none."""
    for name, module in MODULES.items():
        paths = [f"{LAYERS}/{name}{SUFFIX}/{factor}" for factor in "ab"]
        if not run.factors.issuperset(paths):
            continue
        for layer, pair in enumerate(zip(*map(run.read_raw, paths), strict=True)):
            if not any(value.any() for value in pair):
                continue
            for factor, value in zip("AB", pair, strict=True):
                label = f"{module.format(layer)}.lora_{factor}.weight"
                kept = DTYPES[dtype] if dtype else value.dtype
                cast = cast_finite(value.T, kept, f"{run.path}: {label}")
                yield ROOT + label, cast


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raises ConvertError for settings that are wrong, or that change the result unseen."""
    if (kind := settings.get("peft_type")) != "LORA":
        raise ConvertError(f"{where}: peft_type is {kind!r}; only LORA can be imported; {MERGE}")
    neutral: tuple[Any, ...] = (None, False, "", "none", [], {})
    refused = [
        f"{key} = {json.dumps(value)[:60]}"
        for key, value in settings.items()
        if (key not in READ | WITHOUT_EFFECT or key == "bias") and value not in neutral
    ]
    init = settings.get("init_lora_weights")
    if init not in INITIALIZATIONS:
        refused.append(f"init_lora_weights = {json.dumps(init)[:60]}")
    if refused:
        raise ConvertError(
            f"{where}: sets {', '.join(refused)}, which our factors cannot hold; {MERGE}"
        )
    names, layers = (str, list, type(None)), settings.get("layers_to_transform")
    patterns = {key: settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    wrong = [
        key
        for key, sound in (
            ("r", _is_rank(settings.get("r"))),
            ("lora_alpha", _is_alpha(settings.get("lora_alpha"))),
            ("use_rslora", isinstance(settings.get("use_rslora", False), bool)),
            ("rank_pattern", _is_pattern(patterns["rank_pattern"], _is_rank)),
            ("alpha_pattern", _is_pattern(patterns["alpha_pattern"], _is_alpha)),
            ("target_modules", bool(settings.get("target_modules"))),
            ("layers_to_transform", _is_layers(layers)),
            *(
                (key, isinstance(settings.get(key), names) and _all_strings(settings.get(key)))
                for key in ("target_modules", "exclude_modules", "layers_pattern")
            ),
        )
        if not sound
    ]
    if wrong:
        shown = ", ".join(
            f"{key} = {json.dumps(settings.get(key))[:60]}" for key in dict.fromkeys(wrong)
        )
        raise ConvertError(f"{where}: {shown} cannot be; save the adapter with PEFT again")


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _is_pattern(value: Any, sound: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(sound, value.values()))


def _is_layers(value: Any) -> bool:
    listed = value if isinstance(value, list) else [0 if value is None else value]
    return all(type(layer) is int for layer in listed)


def _all_strings(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(one, str) for one in value)


def _find_pairs(
    store: TensorStore, settings: Mapping[str, Any], kernels: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], _Pair]:
    """The factors by (projection, layer), whose shapes fit the base.

    Raises:
      ConvertError: one line with every tensor that is missing, unexpected or of another shape.
    """
    found, problems = _locate(store, kernels)
    root = "" if any(module.startswith("layers.") for module, _ in found) else "model."
    pairs, matcher = {}, Matcher(str(store.path / ADAPTER_CONFIG), ConvertError)
    for name, (layers, inputs, outputs) in kernels.items():
        for layer in range(layers):
            module = root + MODULES[name].format(layer).removeprefix("model.")
            a, b = (found.get((module, factor)) for factor in "AB")
            if not _is_target(settings, module, matcher):
                problems += [f"{there} is not of target_modules" for there in (a, b) if there]
                continue
            rank, alpha = (
                _of_module(settings, f"{key}_pattern", module, settings[default], matcher)
                for key, default in (("rank", "r"), ("alpha", "lora_alpha"))
            )
            for factor, there, expected in (("A", a, (rank, inputs)), ("B", b, (outputs, rank))):
                if there is None:
                    label = f"{ROOT}{module}.lora_{factor}.weight"
                    problems.append(f"{label} {list(expected)} is missing")
                elif store.shape(there) != expected:
                    shape = list(store.shape(there))
                    problems.append(f"{there} is {shape}, expected {list(expected)}")
                elif store.dtype(there).kind not in "fV":  # NumPy counts bfloat16 as V
                    problems.append(f"{there} is {store.dtype(there)}, not a float")
            if a and b:
                pairs[name, layer] = _Pair(a=a, b=b, rank=rank, alpha=alpha)
    if problems or not pairs:
        listed = "; ".join(group_by_layer(problems) or ["no projection has factors"])
        raise ConvertError(
            f"{store.path} does not fit the base: {listed}; give the base that it was trained on,"
            f" and factors of {', '.join(MODULES)} alone"
        )
    return pairs


def _locate(
    store: TensorStore, kernels: Mapping[str, tuple[int, ...]]
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Names of tensors by (module, A | B), and a phrase for each that belongs to no projection."""
    found, unexpected = {}, []
    for there in store.names():
        hit = _NAME.fullmatch(there)
        name = hit["name"] if hit else ""
        if (
            hit
            and name in kernels
            and int(hit["layer"]) < kernels[name][0]
            and hit["module"].endswith(
                MODULES[name].format(int(hit["layer"])).removeprefix("model.")
            )
        ):
            found[hit["module"], hit["factor"]] = there
        else:
            unexpected.append(f"{there} {list(store.shape(there))} is unexpected")
    return found, unexpected


def _read(store: TensorStore, name: str) -> np.ndarray:
    value = store.read(name)
    store.refuse_non_finite(name, value)
    return value


def _is_target(settings: Mapping[str, Any], module: str, matcher: Matcher) -> bool:
    """Whether PEFT gives a module factors."""
    if _is_named(settings.get("exclude_modules"), module, matcher):
        return False
    targets = settings["target_modules"]
    if targets == "all-linear":
        return True
    if not _is_named(targets, module, matcher):
        return False
    layers = settings.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # As PEFT: the number must have something before its list of layers.
        if hit := matcher.fullmatch(rf".*\.(?:{pattern})\.(\d+)\..*", module):
            return int(hit.groups()[-1]) in (layers if isinstance(layers, list) else [layers])
    return False


def _is_named(names: str | list[str] | None, module: str, matcher: Matcher) -> bool:
    """Whether a regular expression finds a whole module, or one of some names its end."""
    if isinstance(names, str):
        return bool(names) and matcher.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _of_module(
    settings: Mapping[str, Any], key: str, module: str, default: Any, matcher: Matcher
) -> Any:
    """A module's value in rank_pattern or alpha_pattern: the first pattern that finds its end."""
    for pattern, value in (settings.get(key) or {}).items():
        if matcher.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default
