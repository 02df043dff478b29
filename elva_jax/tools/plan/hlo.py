"""Reads the text of a compiled program: FLOPs of its matrix products, and its collectives.

    %dot.1 = f16[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
     name     shape        op  operands  attributes

XLA's `cost_analysis` does not give these numbers: it counts the body of a loop once, sums products
of 16-bit and of 32-bit numbers, and leaves out collectives. jaxlib's instruction objects have
neither shapes nor attributes. docs/plan.md says what the plan makes of the numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from elva_jax.errors import ElvaError

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Bytes per number; any other type has four.
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
# Operations that leave the values of 16-bit numbers as they are.
PRESERVING = ("convert", "bitcast", "copy", "transpose", "reshape", "all-gather")
CALLING = ("while", "fusion", "call", "conditional", "async-start")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
# Replica groups: a mesh and some of its axes, rows of an iota, or lists of devices.
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r"\s*\{([^}]*)\}"
)
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array: the result of a gather, the operand of a reduction.
      group: devices of its first group; the other groups are alike.
      times: how often a step runs it.
      scattered: each device keeps only a slice of the result of this all-reduce; on GPUs, XLA
        makes it a reduce-scatter.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    times: int
    scattered: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The work of one device in a step."""

    half: float  # FLOPs of matrix products of 16-bit numbers
    single: float  # FLOPs of matrix products of 32-bit numbers
    collectives: list[Collective]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    root: str  # "ROOT " for the last one of a computation
    name: str
    shape: str
    op: str
    rest: str  # operands and attributes

    @functools.cached_property
    def operands(self) -> list[str]:
        operands = self.rest.partition(")")[0].split(",")
        return [operand.strip().split(" ")[-1].lstrip("%") for operand in operands]

    @functools.cached_property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Types and dimensions; one pair unless it is a tuple."""
        return [(kind, _numbers(dims)) for kind, dims in _SHAPE.findall(self.shape)]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(BYTES.get(kind, 4) * math.prod(dims) for kind, dims in self.shapes)

    @property
    def called(self) -> list[str]:
        """Names of the computations it calls."""
        branches = ",".join(_BRANCHES.findall(self.rest)).replace("%", "").replace(" ", "")
        return [*_CALLED.findall(self.rest), *filter(None, branches.split(","))]


_Computation = dict[str, _Instruction]


def read(text: str, devices: int, open_trips: int = 0) -> Program:
    """Reads `compiled.as_text()`.

    Args:
      text: the optimized program.
      devices: the number of devices it is for.
      open_trips: how often a loop runs whose length only the data tell, such as that over the
        videos of a row; 0: there is none.

    Raises:
      ElvaError: a loop with products or collectives does not state its trip count where there
        should be none, or replica groups are written in an unknown way.
    """
    return _Reader(text, devices, open_trips).read()


class _Reader:
    def __init__(self, text: str, devices: int, open_trips: int):
        self._devices, self._open_trips = devices, open_trips
        self._computations: dict[str, _Computation] = {}
        self._entry = name = ""
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                name = head[2]
                self._entry = name if head[1] else self._entry
                self._computations[name] = {}
            elif name and (found := _INSTRUCTION.match(line)):
                instruction = _Instruction(*(part or "" for part in found.groups()))
                self._computations[name][instruction.name] = instruction
        self._half = self._single = 0.0
        self._collectives: list[Collective] = []

    def read(self) -> Program:
        self._walk(self._entry, 1)
        return Program(half=self._half, single=self._single, collectives=self._collectives)

    def _walk(self, name: str, times: int) -> None:
        """Counts a computation that runs `times` times, and those that it calls."""
        computation = self._computations[name]
        users: dict[str, list[_Instruction]] = defaultdict(list)
        for line in computation.values():
            for operand in line.operands:
                users[operand].append(line)
        for line in computation.values():
            if line.op == "dot":
                if all(self._is_half(operand, computation) for operand in line.operands):
                    self._half += times * _dot_flops(line, computation)
                else:
                    self._single += times * _dot_flops(line, computation)
            elif line.op.removesuffix("-start") in KINDS:
                self._collectives += self._collective(line, computation, users, times)
            if line.op in CALLING:
                for called in line.called:
                    if called in self._computations:
                        self._walk(called, times * self._trips(line, called))

    def _trips(self, line: _Instruction, body: str) -> int:
        if line.op != "while":
            return 1
        if found := _TRIPS.search(line.rest):
            return int(found[1])
        if self._open_trips:
            return self._open_trips
        inner = self._computations[body].values()
        if any(other.op == "dot" or other.op.startswith(KINDS) for other in inner):
            raise ElvaError(
                f"the compiled program's loop {line.name} does not state its trip count, "
                "so its cost cannot be counted"
            )
        return 1

    def _is_half(self, name: str, computation: _Computation) -> bool:
        """Whether a factor has 16 bits, or had until the CPU backend widened it for the product."""
        line = computation.get(name)
        while line is not None:
            if line.shapes[0][0] in ("f16", "bf16"):
                return True
            if line.op == "fusion":
                computation = self._computations[line.called[0]]
                line = next(inner for inner in computation.values() if inner.root)
            elif line.op in PRESERVING:
                line = computation.get(line.operands[0])
            else:
                return False
        return False

    def _collective(
        self,
        line: _Instruction,
        computation: _Computation,
        users: dict[str, list[_Instruction]],
        times: int,
    ) -> Iterator[Collective]:
        """One collective; two if devices keep slices of some results of an all-reduce only."""
        kind = line.op.removesuffix("-start")
        operands = [computation[name] for name in line.operands if name in computation]
        taken = sum(operand.size for operand in operands)
        sizes: dict[bool, int] = defaultdict(int)
        if kind == "all-reduce":
            for index, operand in enumerate(operands):
                readers = _readers_of_result(line, index, users)
                scattered = bool(readers) and all(map(self._slices, readers))
                sizes[scattered] += operand.size
        else:
            # The shape of a "-start" holds operands and results.
            made = line.size - taken if line.op.endswith("-start") else line.size
            sizes[False] = max(taken, made)
        if kind == "collective-permute":
            group = _farthest_pair(line.rest)
        else:
            group = _first_group(line.rest, self._devices)
        for scattered, size in sizes.items():
            yield Collective(kind=kind, size=size, group=group, times=times, scattered=scattered)

    def _slices(self, user: _Instruction) -> bool:
        """Whether an instruction takes a slice that depends on the device."""
        called = user.called if user.op in ("fusion", "call") else ()
        inner = (line for name in called for line in self._computations.get(name, {}).values())
        return any(line.op == "dynamic-slice" for line in (user, *inner))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _dot_flops(line: _Instruction, computation: _Computation) -> float:
    left = computation[line.operands[0]].shapes[0][1]
    found = _CONTRACTED.search(line.rest)
    contracted = _numbers(found[1]) if found else ()
    return 2.0 * math.prod(line.shapes[0][1]) * math.prod(left[axis] for axis in contracted)


def _readers_of_result(
    line: _Instruction, index: int, users: dict[str, list[_Instruction]]
) -> list[_Instruction]:
    """The instructions that read result `index` of an instruction."""
    if not line.shape.startswith("("):
        return users[line.name]
    elements = [
        user
        for user in users[line.name]
        if user.op == "get-tuple-element" and f"index={index}" in re.split(r"[, ]", user.rest)
    ]
    return [user for element in elements for user in users[element.name]]


def _farthest_pair(rest: str) -> tuple[int, ...]:
    """The pair of a permutation with the largest distance."""
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", rest)]
    return max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=(0,))


def _first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The devices of the first replica group, in any of XLA's notations.

    Raises:
      ElvaError: an unknown notation.
    """
    if found := _MESH_GROUPS.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        chosen = re.findall(r"'([^']+)'", found[4])
        if set(chosen) <= sizes.keys() and ":" not in found[4]:
            ids = _device_order(found[2] or str(math.prod(sizes.values())), found[3])
            steps = dict(zip(sizes, _strides(list(sizes.values())), strict=True))
            offsets = ([i * steps[name] for i in range(sizes[name])] for name in chosen)
            return tuple(sorted(ids[sum(place)] for place in itertools.product(*offsets)))
    if found := _IOTA_GROUPS.search(rest):
        return tuple(sorted(_device_order(found[3], found[4])[: int(found[2])]))
    if found := _LIST_GROUPS.search(rest):
        return _numbers(found[1])
    if "replica_groups={}" in rest or "replica_groups" not in rest:
        return tuple(range(devices))
    notation = rest[rest.index("replica_groups") :][:80]
    raise ElvaError(
        f"the compiled program groups devices by {notation}, which this version cannot read"
    )


def _device_order(dims: str, permutation: str | None) -> list[int]:
    """Devices 0 … n - 1 in an array of these dimensions, transposed and read row by row."""
    sizes = _numbers(dims)
    axes = _numbers(permutation) if permutation else range(len(sizes))
    strides = _strides(sizes)
    offsets = ([i * strides[axis] for i in range(sizes[axis])] for axis in axes)
    return [sum(place) for place in itertools.product(*offsets)]


def _strides(sizes: list[int] | tuple[int, ...]) -> list[int]:
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
