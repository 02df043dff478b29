"""ELVA, an encoder-free Video-LLM (arXiv 2503.18422), in JAX and Flax.

The names below are the public API. Everything else is private: modules may move, and functions may
change, without notice. (Config files also use `elva_jax.config.schema`.)

Using a model:      load, ElvaModel, Request, Sampling, Hybrid
Looking inside:     Merging, MergeLayer, merge, build_layout, TokenLayout, Text, Clip, read_video
Training:           load_config, train, distributed
Measuring:          evaluate, EvalConfig, evaluate_benchmarks, BenchmarkConfig, JudgeConfig,
                    load_own
Everywhere:         errors, enable_compilation_cache, testing

Nothing is imported before it is used, so `import elva_jax` takes no time and does not start JAX.
As a library the package prints nothing: problems are exceptions from `elva_jax.errors`, notices go
to the logger "elva_jax" at level INFO, and progress goes to a callback.

Example:
  >>> import elva_jax
  >>> from elva_jax import testing
  >>> model = testing.tiny_model()  # for a trained one: elva_jax.load("runs/tiny")
  >>> model.answer(testing.tiny_video(), "What moves?", max_new_tokens=4)
  '...'
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from elva_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from elva_jax import errors, testing
    from elva_jax.config.load import load as load_config
    from elva_jax.evaluation.benchmarks.own import load_own
    from elva_jax.evaluation.evaluate import evaluate
    from elva_jax.evaluation.judge.config import JudgeConfig
    from elva_jax.evaluation.result import EvalConfig
    from elva_jax.evaluation.runner.run import evaluate_benchmarks
    from elva_jax.evaluation.runner.settings import BenchmarkConfig
    from elva_jax.inference.load import load
    from elva_jax.inference.media import Request
    from elva_jax.inference.model import ElvaModel
    from elva_jax.inference.sampling import Sampling
    from elva_jax.ops.merging import MergeLayer, Merging, merge
    from elva_jax.parallel import distributed
    from elva_jax.tasks.api import train
    from elva_jax.utils.compilation_cache import enable_compilation_cache
    from elva_jax.video.hybrid import Hybrid
    from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout
    from elva_jax.video.read import read_frames as read_video

# public name -> module, or module:name
_EXPORTS = {
    "BenchmarkConfig": "evaluation.runner.settings:BenchmarkConfig",
    "Clip": "video.layout:Clip",
    "ElvaModel": "inference.model:ElvaModel",
    "EvalConfig": "evaluation.result:EvalConfig",
    "Hybrid": "video.hybrid:Hybrid",
    "JudgeConfig": "evaluation.judge.config:JudgeConfig",
    "MergeLayer": "ops.merging:MergeLayer",
    "Merging": "ops.merging:Merging",
    "Request": "inference.media:Request",
    "Sampling": "inference.sampling:Sampling",
    "Text": "video.layout:Text",
    "TokenLayout": "video.layout:TokenLayout",
    "build_layout": "video.layout:build_layout",
    "distributed": "parallel.distributed",
    "enable_compilation_cache": "utils.compilation_cache:enable_compilation_cache",
    "errors": "errors",
    "evaluate": "evaluation.evaluate:evaluate",
    "evaluate_benchmarks": "evaluation.runner.run:evaluate_benchmarks",
    "load": "inference.load:load",
    "load_config": "config.load:load",
    "load_own": "evaluation.benchmarks.own:load_own",
    "merge": "ops.merging:merge",
    "read_video": "video.read:read_frames",
    "testing": "testing",
    "train": "tasks.api:train",
}
__all__ = [
    "BenchmarkConfig",
    "Clip",
    "ElvaModel",
    "EvalConfig",
    "Hybrid",
    "JudgeConfig",
    "MergeLayer",
    "Merging",
    "Request",
    "Sampling",
    "Text",
    "TokenLayout",
    "build_layout",
    "distributed",
    "enable_compilation_cache",
    "errors",
    "evaluate",
    "evaluate_benchmarks",
    "load",
    "load_config",
    "load_own",
    "merge",
    "read_video",
    "testing",
    "train",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    value = importlib.import_module(f"{__name__}.{module}")
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
