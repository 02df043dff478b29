"""The options in `--model_args`, typed and checked.

lmms-eval splits the text at commas and guesses types: `-1` arrives as -1.0, `None` as "None", a
folder named 7 as an int, `--batch_size 4` as "4".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from elva_jax.config.check import nearest
from elva_jax.config.mesh_axes import AXES, mesh_config, parse_axes
from elva_jax.config.schema import MeshConfig
from elva_jax.errors import ConfigError
from elva_jax.inference.quantization import SCHEMES, Scheme
from elva_jax.utils import numbers
from elva_jax.video.hybrid import POLICIES

AUTO_BATCH = 8  # questions that are asked together, where `--batch_size auto` is given
NONE = ("", "none", "null")
Dtype = Literal["float32", "bfloat16"]
IGNORED = ("device", "max_batch_size")  # what lmms-eval gives beside the model_args


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The model to load, and how to ask it.

    Attributes:
      pretrained: a run's workdir, a stage or saved step in it, or an exported folder.
      stage: the stage of a workdir; None: the last one.
      step: the saved step; None: the last one.
      weights: the beginning of the hash that the weights must have; None: any.
      dtype: the compute type; None: the run's.
      quantize: int8 or int4, as `weights` of `elva_jax.load`; None: the compute type.
      prefill_chunk: tokens of a prompt that prefill takes at a time, as in `elva_jax.load`.
      mesh: axes and sizes of the devices over which the weights are sharded; (): one device.
      frames: frames sampled from a video; None: as in the stage.
      longest_edge: longest edge of frames and images in pixels; None: as in the stage.
      high_frames: hybrid resolution, as the other fields of `Hybrid` that follow.
      low_frames: of the frames at low resolution.
      high_edge: longest edge of the frames at high resolution.
      low_edge: of those at low resolution.
      high_policy: which frames are at high resolution.
      merging: whether the model's merging layers act.
      max_new_tokens: longest answer where the task does not say.
      batch: most questions that are asked together; None: `--batch_size`.
      likelihood: the loss of an option: "sum" over its tokens, or their "mean" as the models that
        come with lmms-eval have it.
      seed: of answers that are drawn.
    """

    pretrained: str
    stage: str | None = None
    step: int | None = None
    weights: str | None = None
    dtype: Dtype | None = None
    quantize: Scheme | None = None
    prefill_chunk: int | None = None
    mesh: tuple[tuple[str, int], ...] = ()
    frames: int | None = None
    longest_edge: int | None = None
    high_frames: int | None = None
    low_frames: int | None = None
    high_edge: int | None = None
    low_edge: int | None = None
    high_policy: str | None = None
    merging: bool = True
    max_new_tokens: int = 1024
    batch: int = 1
    likelihood: Literal["sum", "mean"] = "sum"
    seed: int = 0

    @property
    def hybrid(self) -> dict[str, int | str]:
        """The fields of `Hybrid` that were given."""
        names = ("high_frames", "low_frames", "high_edge", "low_edge")
        fields = {name: getattr(self, name) for name in names} | {"policy": self.high_policy}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def mesh_config(self) -> MeshConfig | None:
        """The mesh; None without one."""
        if not self.mesh:
            return None
        sizes = dict(self.mesh)
        if -1 not in sizes.values():
            sizes.setdefault("data", -1)
        return mesh_config(sizes)


def _whole(allowed: numbers.Range) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
            value = int(value)
        allowed.check(name, value)
        return int(value)

    return read


def _text(name: str, value: Any) -> str:
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
        raise ConfigError(f"{name}: must be a text, got {numbers.shown(value)}")
    return str(value)


def _hash(name: str, value: Any) -> str:
    text = str(value).strip("'\"").lower()
    if isinstance(value, float) or not re.fullmatch("[0-9a-f]{4,64}", text):
        raise ConfigError(
            f"{name}: '{numbers.shown(value)}' is not the hash of weights; give it as it was"
            " printed, in quotes if it looks like a number"
        )
    return text


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value) in ("0", "1"):
        return str(value) == "1"
    raise ConfigError(f"{name}: must be true or false, got {numbers.shown(value)}")


def _one_of(*allowed: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> str:
        if value not in allowed:
            near = nearest(value, allowed)
            raise ConfigError(
                f"{name}: '{numbers.shown(value)}' is not one of {', '.join(allowed)}{near}"
            )
        return value

    return read


def _mesh(name: str, value: Any) -> tuple[tuple[str, int], ...]:
    """`fsdp:2/tensor:4` as axes and sizes."""
    try:
        return tuple(parse_axes(str(value), axes=AXES, separators=("/", ":")).items())
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "pretrained": _text,
    "stage": _text,
    "step": _whole(numbers.whole(0)),
    "weights": _hash,
    "dtype": _one_of(*get_args(Dtype)),
    "quantize": _one_of(*SCHEMES),
    "prefill_chunk": _whole(numbers.whole(0, numbers.MOST_TOKENS)),
    "mesh": _mesh,
    "frames": _whole(numbers.FRAMES),
    "longest_edge": _whole(numbers.EDGE),
    "high_frames": _whole(numbers.whole(0, numbers.MOST_FRAMES)),
    "low_frames": _whole(numbers.whole(0, numbers.MOST_FRAMES)),
    "high_edge": _whole(numbers.EDGE),
    "low_edge": _whole(numbers.EDGE),
    "high_policy": _one_of(*POLICIES),
    "merging": _flag,
    "max_new_tokens": _whole(numbers.TOKENS),
    "batch": _whole(numbers.ROWS),
    "likelihood": _one_of("sum", "mean"),
    "seed": _whole(numbers.whole(0)),
}


def parse_options(given: Mapping[str, Any]) -> Options:
    """The options of the keyword arguments that lmms-eval calls a model with.

    Raises:
      ConfigError: an unknown key, with the nearest one; a value that cannot be; keys that do not go
        together; or no checkpoint.
    """
    values = {name: value for name, value in given.items() if not _is_none(value)}
    batch_size = values.pop("batch_size", 1)
    path = values.pop("checkpoint", None)
    if path is not None and values.setdefault("pretrained", path) != path:
        raise ConfigError("model_args: pretrained and checkpoint mean the same; give one of them")
    known = (*READERS, "checkpoint")
    read = {}
    for name, value in values.items():
        if name in IGNORED:
            continue
        if name not in READERS:
            raise ConfigError(
                f"model_args: no option '{numbers.shown(name)}'{nearest(name, known)}"
            )
        read[name] = READERS[name](f"model_args: {name}", value)
    if "pretrained" not in read:
        raise ConfigError("model_args: no checkpoint; give pretrained=RUN")
    read.setdefault("batch", _batch(batch_size))
    options = Options(**read)
    if options.hybrid and options.frames:
        raise ConfigError(
            "model_args: frames does not go together with hybrid resolution; give high_frames and"
            " low_frames instead"
        )
    return options


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in NONE)


def _batch(value: Any) -> int:
    """The number of `--batch_size`."""
    if str(value).partition(":")[0] == "auto":
        return AUTO_BATCH
    return _whole(numbers.ROWS)("--batch_size", value)
