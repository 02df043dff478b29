"""The parts of the report, in the order of their value."""

from __future__ import annotations

import dataclasses

NO_POOL = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
ON_CPU = {"JAX_PLATFORMS": "cpu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the report."""

    name: str
    module: str  # under `parts`
    seconds: float  # its limit
    options: tuple[str, ...] = ()  # given to the module's `run`
    background: bool = False  # runs beside the others, on the CPU
    environment: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()  # instead of the worker


def _part(name: str, seconds: float, *options: str, module: str = "", **settings: str) -> Part:
    environment = tuple(settings.items())
    return Part(
        name=name, module=module or name, seconds=seconds, options=options, environment=environment
    )


PLAN = Part(
    name="plan", module="plan", seconds=420, background=True, environment=tuple(ON_CPU.items())
)
PARTS: tuple[Part, ...] = (
    PLAN,
    _part("environment", 40),
    _part("answer_7b", 90, "none", module="answer"),
    _part("train_stage3", 90, "stage3", module="train"),
    _part("attention", 90),
    _part("table5", 170),
    _part("train_stage2", 80, "stage2", module="train"),
    _part("pytorch_stage3", 90, "stage3", module="train_pytorch", **ON_CPU),
    *(
        _part(f"memory_{variant}", 45, variant, module="memory", **NO_POOL)
        for variant in ("encoder_based", "merge_hr", "encoder_free", "merge")
    ),
    _part("answer_7b_int8", 60, "int8", module="answer"),
    _part("answer_7b_int4", 60, "int4", module="answer"),
    _part("serve", 150),
    _part("pytorch_stage2", 80, "stage2", module="train_pytorch", **ON_CPU),
)
