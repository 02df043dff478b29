"""Reading a compiled program's text: its matrix products and what its collectives move, with loops counted as often as they run."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from elva_jax.errors import ElvaError

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
PASSING = (
    "convert",
    "bitcast",
    "copy",
    "transpose",
    "reshape",
    "all-gather",
)  # what changes no number of 16 bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    size: int  # bytes of the whole: what a gather makes, what a reduction takes
    group: tuple[int, ...]  # devices of the first of its groups, which are all alike
    times: int  # how often a step runs it
    scattered: bool  # an all-reduce of which every device keeps a piece alone: on GPUs XLA makes a reduce-scatter of it


class Program(NamedTuple):
    """What one device does in a step."""

    half: float  # FLOPs of matrix products of 16-bit numbers
    single: float  # FLOPs of those of 32-bit numbers
    collectives: list[Collective]


class _Instruction(NamedTuple):
    root: str  # "ROOT " on the last one of a computation
    name: str
    shape: str
    op: str
    rest: str


def read(text: str, devices: int) -> Program:
    """Reads `compiled.as_text()`.

    Args:
      text: the optimised program.
      devices: how many it is for.

    Raises:
      ElvaError: a loop without a known number of rounds that holds products or collectives, or groups written in an unknown way.
    """
    bodies, entry = _computations(text)
    users = {name: _users(body) for name, body in bodies.items()}
    lines = {name: {line.name: line for line in body} for name, body in bodies.items()}
    total = {"half": 0.0, "single": 0.0}
    collectives: list[Collective] = []

    def walk(name: str, times: int) -> None:
        shapes = {line.name: line.shape for line in bodies[name]}
        for line in bodies[name]:
            if line.op == "dot":
                narrow = all(_narrow(operand, lines[name], lines) for operand in _operands(line))
                total["half" if narrow else "single"] += times * _dot_flops(line, shapes)
            elif (kind := line.op.removesuffix("-start")) in KINDS:
                group = (
                    _pairs(line.rest)
                    if kind == "collective-permute"
                    else _group(line.rest, devices)
                )
                for scattered, size in _sizes(line, kind, shapes, users[name], bodies).items():
                    collectives.append(Collective(kind, size, group, times, scattered))
            if line.op in ("while", "fusion", "call", "conditional", "async-start"):
                branches = (
                    ",".join(_BRANCHES.findall(line.rest))
                    .replace("%", "")
                    .replace(" ", "")
                    .split(",")
                )
                for other in filter(bodies.__contains__, (*_CALLED.findall(line.rest), *branches)):
                    walk(other, times * _rounds(line, other, bodies))

    walk(entry, 1)
    return Program(total["half"], total["single"], collectives)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    bodies: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            entry = current if head[1] else entry
            bodies[current] = []
        elif current and (found := _INSTRUCTION.match(line)):
            bodies[current].append(_Instruction(*(part or "" for part in found.groups())))
    return bodies, entry


def _rounds(line: _Instruction, body: str, bodies: Mapping[str, list[_Instruction]]) -> int:
    if line.op != "while":
        return 1
    if found := _TRIPS.search(line.rest):
        return int(found[1])
    if any(inner.op == "dot" or inner.op.startswith(KINDS) for inner in bodies[body]):
        raise ElvaError(
            f"the compiled program's loop {line.name} does not say how often it runs; its cost cannot be counted"
        )
    return 1


def _operands(line: _Instruction) -> list[str]:
    return [
        part.strip().split(" ")[-1].lstrip("%") for part in line.rest.partition(")")[0].split(",")
    ]


def _users(body: list[_Instruction]) -> dict[str, list[_Instruction]]:
    users: dict[str, list[_Instruction]] = {}
    for line in body:
        for name in _operands(line):
            users.setdefault(name, []).append(line)
    return users


def _narrow(
    name: str, body: Mapping[str, _Instruction], lines: Mapping[str, Mapping[str, _Instruction]]
) -> bool:
    """Whether a factor of a product is 16 bits wide, or was until the CPU backend widened it for this product."""
    line = body.get(name)
    while line is not None:
        if _SHAPE.search(line.shape)[1] in ("f16", "bf16"):
            return True
        if line.op == "fusion":
            body = lines[_CALLED.findall(line.rest)[0]]
            line = next(inner for inner in body.values() if inner.root)
        elif line.op in PASSING:
            line = body.get(_operands(line)[0])
        else:
            return False
    return False


def _dims(shape: str) -> tuple[int, ...]:
    return tuple(int(size) for size in _SHAPE.search(shape)[2].split(",") if size)


def _size(shape: str) -> int:
    return sum(
        BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in _SHAPE.findall(shape)
    )


def _dot_flops(line: _Instruction, shapes: Mapping[str, str]) -> float:
    left = _dims(shapes[_operands(line)[0]])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    return (
        2.0
        * math.prod(_dims(line.shape))
        * math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis)
    )


def _sizes(line: _Instruction, kind: str, shapes, users, bodies) -> dict[bool, int]:
    """Bytes of a collective; those of an all-reduce apart by whether each device keeps a piece of the result alone."""
    operands = [name for name in _operands(line) if name in shapes]
    taken, made = sum(_size(shapes[name]) for name in operands), _size(line.shape)
    if kind != "all-reduce":
        return {False: max(taken, made - taken if line.op.endswith("-start") else made)}
    readers, out = users.get(line.name, []), {}
    for index, name in enumerate(operands):
        if line.shape.startswith("("):
            results = [
                reader
                for reader in readers
                if reader.op == "get-tuple-element"
                and f"index={index}" in re.split(r"[, ]", reader.rest)
            ]
            final = [user for result in results for user in users.get(result.name, ())]
        else:
            final = readers
        scattered = bool(final) and all(_slices(user, bodies) for user in final)
        out[scattered] = out.get(scattered, 0) + _size(shapes[name])
    return out


def _slices(user: _Instruction, bodies) -> bool:
    """Whether an instruction takes a slice that depends on the device."""
    called = _CALLED.findall(user.rest) if user.op in ("fusion", "call") else ()
    return user.op == "dynamic-slice" or any(
        inner.op == "dynamic-slice" for name in called for inner in bodies.get(name, ())
    )


def _pairs(rest: str) -> tuple[int, ...]:
    """The pair of a permutation that lies farthest apart."""
    pairs = re.findall(r"\{(\d+),(\d+)\}", rest)
    return max(
        ((int(a), int(b)) for a, b in pairs), key=lambda pair: abs(pair[0] - pair[1]), default=(0,)
    )


def _group(rest: str, devices: int) -> tuple[int, ...]:
    """The first replica group, in any of the ways that XLA writes them: a mesh and axes, an iota, or lists.

    Raises:
      ElvaError: another way.
    """
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}",
        rest,
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        chosen = re.findall(r"'([^']+)'", found[4])
        if set(chosen) <= sizes.keys() and ":" not in found[4]:
            ids = _order(found[2] or str(math.prod(sizes.values())), found[3])
            steps = {
                name: math.prod(list(sizes.values())[axis + 1 :]) for axis, name in enumerate(sizes)
            }
            return tuple(
                sorted(
                    ids[sum(at)]
                    for at in itertools.product(
                        *([i * steps[name] for i in range(sizes[name])] for name in chosen)
                    )
                )
            )
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return tuple(sorted(_order(found[3], found[4])[: int(found[2])]))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(device) for device in found[1].split(","))
    if re.search(r"replica_groups=\{\}", rest) or "replica_groups" not in rest:
        return tuple(range(devices))
    written = rest[rest.index("replica_groups") :][:80]
    raise ElvaError(
        f"the compiled program groups devices by {written}, which this version cannot read"
    )


def _order(dims: str, permutation: str | None) -> list[int]:
    """Devices 0 … n - 1 laid out as `dims`, with the axes in another order if there is one, row by row."""
    sizes = [int(size) for size in dims.split(",")]
    axes = [int(axis) for axis in permutation.split(",")] if permutation else range(len(sizes))
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return [
        sum(at)
        for at in itertools.product(
            *([i * steps[axis] for i in range(sizes[axis])] for axis in axes)
        )
    ]
