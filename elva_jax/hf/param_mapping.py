"""Tables of names: which tensor on disk is which parameter of ours, and how its axes lie; one table serves both directions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from elva_jax.errors import ConvertError

Shape = tuple[int, ...]
Groups = tuple[tuple[str, ...], ...]


class Rule(NamedTuple):
    """One parameter of ours.

    `axes` reads "theirs -> ours": one letter an axis, brackets around axes that lie flattened in one, the slowest first. So
    "(h d) c -> c h d" is a PyTorch linear [H*Dh, C] whose outputs we split into heads. With {} in `theirs`, `axes` is about one layer.
    """

    ours: str  # '/'-joined path
    theirs: (
        str  # name on disk; {}: the number of the layer, where ours are stacked on a leading axis
    )
    axes: str = ""  # "": as they are
    part: tuple[int, int] | None = (
        None  # (k, n): ours is the k-th of n equal parts of their first axis
    )
    zeros: bool = False  # whether it may be absent and is 0 then


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one layout."""

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # of axes that only appear inside brackets with others
    prefix: str = ""  # the beginning of `theirs` that names on disk may lack
    ignored: tuple[str, ...] = ()  # regular expressions of names on disk that are not wanted
    growing: str = ""  # axes of which the disk may hold fewer than we have: rows of a vocabulary

    def match(self, name: str) -> list[tuple[Rule, int | None]]:
        """The rules that a name on disk falls under, with its layer; several where one tensor holds several parameters."""
        found = ((rule, _pattern(self.prefix, rule.theirs).fullmatch(name)) for rule in self.rules)
        return [
            (rule, int(match["layer"]) if "{}" in rule.theirs else None)
            for rule, match in found
            if match
        ]

    def their_shape(self, rule: Rule, shape: Shape) -> Shape:
        """The shape on disk of what is `shape` (of one layer) with us."""
        if not rule.axes:
            return shape
        theirs, ours = _parse(rule.axes)
        sizes = _solve(ours, shape, self.sizes)
        out = [math.prod(sizes[axis] for axis in group) for group in theirs]
        if rule.part:
            out[0] *= rule.part[1]
        return tuple(out)

    def to_ours(self, rule: Rule, value: np.ndarray) -> np.ndarray:
        """A tensor on disk (of one layer) in our shape; a view, unless it flattens what does not lie together."""
        if rule.part:
            k, n = rule.part
            size = len(value) // n
            value = value[k * size : (k + 1) * size]
        return _rearrange(value, *_parse(rule.axes), self.sizes) if rule.axes else value

    def to_theirs(self, path: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Names and values of the tensors that one parameter of ours becomes.

        Raises:
          ConvertError: the table does not know it, or it is part of a tensor of theirs.
        """
        rule = next((rule for rule in self.rules if rule.ours == path), None)
        if rule is None or rule.part:
            raise ConvertError(f"{path}: the table of names has no tensor of its own for it")
        layers = (
            [(rule.theirs.format(i), value[i]) for i in range(len(value))]
            if "{}" in rule.theirs
            else [(rule.theirs, value)]
        )
        for name, layer in layers:
            yield (
                name,
                _rearrange(layer, *reversed(_parse(rule.axes)), self.sizes) if rule.axes else layer,
            )


class Source(NamedTuple):
    """Where one parameter comes from."""

    rule: Rule
    names: tuple[str | None, ...]  # on disk, of every layer; None: zeros


def plan(
    table: Table,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, np.dtype],
    wanted: Mapping[str, Shape],
    where: str,
) -> dict[str, Source]:
    """Settles where every wanted parameter comes from, before anything is read.

    Args:
      table: the layout on disk.
      shapes: of all tensors on disk, by name.
      dtypes: likewise.
      wanted: shapes of our parameters by path; those without a rule are left out.
      where: the folder, for the message.

    Raises:
      ConvertError: one line with all that is missing, unexpected, of another shape, or not of a floating dtype.
    """
    found: dict[tuple[str, int | None], str] = {}
    unexpected = []
    for name in shapes:
        if any(re.fullmatch(pattern, name) for pattern in table.ignored):
            continue
        places = [
            (rule.ours, layer) for rule, layer in table.match(name) if _holds(rule, layer, wanted)
        ]
        found |= dict.fromkeys(places, name)
        if not places:
            unexpected.append(f"{name} {list(shapes[name])} is unexpected")
    sources, missing, wrong = {}, [], []
    for rule in table.rules:
        if rule.ours not in wanted:
            continue
        stacked = "{}" in rule.theirs
        shape = wanted[rule.ours]
        layers = range(shape[0]) if stacked else (None,)
        names = tuple(found.get((rule.ours, layer)) for layer in layers)
        expected = table.their_shape(rule, shape[1:] if stacked else shape)
        for layer, name in zip(layers, names, strict=True):
            if name is None:
                missing += (
                    []
                    if rule.zeros
                    else [f"{rule.theirs.format(layer)} {list(expected)} is missing"]
                )
            elif not _fits(table, rule, expected, shapes[name]):
                wrong.append(f"{name} is {list(shapes[name])}, expected {list(expected)}")
            elif dtypes[name].kind not in "fV":
                wrong.append(
                    f"{name} is {dtypes[name]}, not a float; give the checkpoint before it was quantised"
                )
        sources[rule.ours] = Source(rule, names)
    if problems := [*missing, *unexpected, *dict.fromkeys(wrong)]:
        raise ConvertError(
            f"{where} does not fit the configuration: {'; '.join(_by_layer(problems))}"
        )
    return sources


def _by_layer(problems: Sequence[str]) -> list[str]:
    """The problems, with those that only differ in the layer as one, so that all of them can be listed."""
    layers: dict[str, list[int]] = {}
    for problem in problems:
        number = re.search(r"\.(\d+)\.", problem)
        layers.setdefault(re.sub(r"\.\d+\.", ".{}.", problem, count=1), []).extend(
            [int(number[1])] if number else []
        )
    out = []
    for problem, found in layers.items():
        if len(found) < 2:
            out.append(problem.replace("{}", str(found[0])) if found else problem)
            continue
        together = sorted(found) == list(range(min(found), max(found) + 1))
        out.append(
            f"{problem} for {{}} = {f'{min(found)} … {max(found)}' if together else ', '.join(map(str, sorted(found)))}"
        )
    return out


def _holds(rule: Rule, layer: int | None, wanted: Mapping[str, Shape]) -> bool:
    return rule.ours in wanted and (layer is None or layer < wanted[rule.ours][0])


def _fits(table: Table, rule: Rule, expected: Shape, actual: Shape) -> bool:
    if len(expected) != len(actual):
        return False
    groups = _parse(rule.axes)[0] if rule.axes and table.growing else ((),) * len(expected)
    can_grow = [len(group) == 1 and group[0] in table.growing for group in groups]
    return all(
        here == there or (grows and there < here)
        for here, there, grows in zip(expected, actual, can_grow, strict=True)
    )


@functools.cache
def _pattern(prefix: str, theirs: str) -> re.Pattern[str]:
    optional = prefix if theirs.startswith(prefix) else ""
    rest = re.escape(theirs.removeprefix(optional)).replace(re.escape("{}"), r"(?P<layer>\d+)")
    return re.compile(f"(?:{re.escape(optional)})?{rest}")


@functools.cache
def _parse(axes: str) -> tuple[Groups, Groups]:
    """The groups of axes on both sides of the arrow."""
    theirs, ours = (
        tuple(tuple(re.findall(r"\w", word)) for word in re.findall(r"\([^)]*\)|\w", side))
        for side in axes.split("->")
    )
    return theirs, ours


def _solve(groups: Groups, shape: Shape, known: Mapping[str, int]) -> dict[str, int]:
    """The size of every axis; at most one of a group may be unknown."""
    sizes = dict(known)
    for group, size in zip(groups, shape, strict=True):
        unknown = [axis for axis in group if axis not in known]
        for axis in unknown:
            sizes[axis] = size // math.prod(known[other] for other in group if other != axis)
    return sizes


def _rearrange(
    value: np.ndarray, source: Groups, target: Groups, known: Mapping[str, int]
) -> np.ndarray:
    sizes = _solve(source, value.shape, known)
    flat: Sequence[str] = [axis for group in source for axis in group]
    order = [flat.index(axis) for group in target for axis in group]
    apart = value.reshape([sizes[axis] for axis in flat]).transpose(order)
    return apart.reshape([math.prod(sizes[axis] for axis in group) for group in target])
