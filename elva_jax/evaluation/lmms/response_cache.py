"""The response cache of lmms-eval (`--use_cache`), keyed by the weights as well.

lmms-eval keys answers by the text of `--model` and `--model_args`, so new weights under the same
path would get the answers of the old ones. Here the step and the hash of the weights become part of
the model's name in the key. Two more things are mended for an ELVA: a stored likelihood, which
lmms-eval reads as something that its tasks cannot take, and an empty answer, which it means not to
store but reads from its log when a run is resumed.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.evaluation.lmms.names import ALIASES, MODEL
from elva_jax.utils.files import write_atomic
from elva_jax.utils.read import read_json

NOTE = "elva_weights.json"  # in the cache's folder: {model_args: step and hash}
_TAG = "_elva_identity"
_LOG = logging.getLogger(__name__)

Pair = Callable[[float, bool], Any]  # a loss and whether it is greedy, as tasks can take it


def key_by_weights(cache: Any, identity: str, pair: Pair) -> bool:
    """Makes the cache's `create` put the identity into the name of an ELVA, from now on.

    lmms-eval has no hook between the model and the cache, so the class method is wrapped, once per
    process; other models pass through it unchanged.

    Args:
      cache: the class `lmms_eval.caching.response_cache.ResponseCache`.
      identity: the step and the hash of the weights.
      pair: makes a likelihood of what is stored.

    Returns:
      False where the class has changed so that this is impossible.
    """
    create = getattr(cache, "create", None)
    if create is None or not {"model", "model_args"} <= inspect.signature(create).parameters.keys():
        return False
    wrapped = hasattr(cache, _TAG)
    setattr(cache, _TAG, identity)
    if wrapped:
        return True

    def create_with_weights(
        cls: Any, cache_root: str, *, model: Any = "", model_args: Any = "", **others: Any
    ) -> Any:
        ours = model in (MODEL, *ALIASES) or hasattr(model, "elva")
        if not ours:
            return create.__func__(cls, cache_root, model=model, model_args=model_args, **others)
        weights = getattr(cls, _TAG)
        if not others.get("global_rank"):
            note_weights(Path(cache_root), str(model_args), weights)
        name = f"{MODEL}@{weights}"
        made = create.__func__(cls, cache_root, model=name, model_args=model_args, **others)
        mend(made, pair)
        return made

    cache.create = classmethod(create_with_weights)
    return True


def mend(cache: Any, pair: Pair) -> None:
    """Makes one cache return likelihoods as pairs, and log no empty answer for later runs."""
    execute, log = cache.execute, cache._log_to_audit

    def execute_with_pairs(lm: Any, kind: str, requests: Sequence[Any]) -> list[Any]:
        found = execute(lm, kind, requests)
        if kind != "loglikelihood":
            return found
        return [pair(*each) if isinstance(each, list) else each for each in found]

    def log_if_stored(*described: Any, **more: Any) -> None:
        if not is_stored(described[-1]):
            more["cache_key"] = ""
        log(*described, **more)

    cache.execute, cache._log_to_audit = execute_with_pairs, log_if_stored


def is_stored(response: Any) -> bool:
    """Whether a response is good for later runs: texts that are not empty, and finite losses."""
    if isinstance(response, str):
        return bool(response.strip())
    if isinstance(response, tuple):
        return math.isfinite(response[0])
    return all(isinstance(text, str) for text in response) and bool("".join(response).strip())


def note_weights(root: Path, model_args: str, identity: str) -> None:
    """Writes the weights of a cache's newest answers beside it; says so where they are others."""
    if root.suffix == ".db":
        root = root.parent
    path = root / NOTE
    noted: dict[str, Any] = {}
    with contextlib.suppress(DataError):
        noted = read_json(path)
    before = noted.get(model_args)
    if before == identity:
        return
    if before is not None:
        _LOG.warning(
            "%s holds answers of other weights (%s) under the same model_args; now they are %s,"
            " and every question is asked again",
            root,
            before,
            identity,
        )
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**noted, model_args: identity}, indent=1) + "\n")
