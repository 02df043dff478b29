"""Name tables: which tensor in a folder is which of our parameters, and how its axes are arranged.

One rule per parameter serves both directions. Its einops pattern reads from their axes to ours; the
weight of a PyTorch linear layer whose outputs we split into heads, for example, has the pattern

    theirs [heads * dim, width]   "(heads dim) width -> width heads dim"   ours [width, heads, dim]
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

import einops
import numpy as np

from elva_jax.errors import ConvertError

Shape = tuple[int, ...]

LINEAR = "outputs inputs -> inputs outputs"
VOCAB = "vocab"  # axis of which a folder may hold fewer entries than we want: rows of a vocabulary


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one of our parameters is stored.

    Attributes:
      ours: '/'-joined path of the parameter.
      theirs: name in the folder; {} is the layer where ours stacks layers on a leading axis.
      pattern: einops pattern from theirs (of one layer) to ours; empty where the axes are the same.
      part: (k, n) where ours is the k-th of n equal parts of their first axis.
      optional: whether the tensor may be missing, so that the parameter is 0.
      first: number in the folder of the first layer of ours.
    """

    ours: str
    theirs: str
    pattern: str = ""
    _: dataclasses.KW_ONLY
    part: tuple[int, int] | None = None
    optional: bool = False
    first: int = 0

    @property
    def stacked(self) -> bool:
        """Whether ours stacks all layers on a leading axis."""
        return "{}" in self.theirs

    def name(self, layer: int | None) -> str:
        """The name in the folder, of one of our layers where they are stacked."""
        return self.theirs if layer is None else self.theirs.format(layer + self.first)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one family of models.

    Attributes:
      rules: one per parameter.
      sizes: sizes of axes that patterns only name inside parentheses.
      prefix: beginning of `theirs` that names in a folder may lack.
      ignored: regular expressions of names in a folder that are not needed.
    """

    rules: tuple[Rule, ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    def match(self, name: str) -> list[tuple[Rule, int | None]]:
        """The rules for a name in a folder, each with the layer; several if one tensor is split."""
        found = ((rule, _regex(self.prefix, rule.theirs).fullmatch(name)) for rule in self.rules)
        return [
            (rule, int(hit["layer"]) - rule.first if rule.stacked else None)
            for rule, hit in found
            if hit
        ]

    def their_shape(self, rule: Rule, shape: Shape) -> Shape:
        """The shape in a folder of a parameter that has `shape` (of one layer) here."""
        # No memory is taken: all elements of the broadcast array are one and the same.
        out = self._rearrange(rule, np.broadcast_to(np.int8(0), shape), reverse=True).shape
        return (out[0] * rule.part[1], *out[1:]) if rule.part else out

    def to_ours(self, rule: Rule, value: np.ndarray) -> np.ndarray:
        """A tensor of a folder (one layer) in our layout, as a view wherever NumPy can give one."""
        if rule.part:
            k, n = rule.part
            size = len(value) // n
            value = value[k * size : (k + 1) * size]
        return self._rearrange(rule, value)

    def to_theirs(self, path: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Names and values of the tensors that one of our parameters becomes.

        Raises:
          ConvertError: the table does not know it, or it is only a part of a tensor.
        """
        rule = next((rule for rule in self.rules if rule.ours == path), None)
        if rule is None or rule.part:
            raise ConvertError(f"{path}: the table of names has no tensor of its own for it")
        for layer, piece in enumerate(value if rule.stacked else [value]):
            yield rule.name(layer), self._rearrange(rule, piece, reverse=True)

    def _rearrange(self, rule: Rule, value: np.ndarray, *, reverse: bool = False) -> np.ndarray:
        if not rule.pattern:
            return value
        source, target = rule.pattern.split(" -> ")[:: -1 if reverse else 1]
        sizes = {axis: n for axis, n in self.sizes.items() if axis in re.findall(r"\w+", source)}
        return einops.rearrange(value, f"{source} -> {target}", **sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where one parameter is read from."""

    rule: Rule
    names: tuple[str | None, ...]  # in the folder, one per layer; None: zeros


def plan(
    table: Table,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, np.dtype],
    wanted: Mapping[str, Shape],
    where: str,
) -> dict[str, Source]:
    """Finds the source of every wanted parameter before anything is read.

    Args:
      table: the names in the folder.
      shapes: shapes of all tensors in the folder, by name.
      dtypes: their dtypes, by name.
      wanted: shapes of our parameters by path; those without a rule are left out.
      where: the folder, for the message.

    Raises:
      ConvertError: one line with every tensor that is missing, unexpected, of another shape or not
        of a floating-point dtype.
    """
    found: dict[tuple[str, int | None], str] = {}
    missing: list[str] = []
    unexpected: list[str] = []
    wrong: list[str] = []
    for there, shape in shapes.items():
        if any(re.fullmatch(pattern, there) for pattern in table.ignored):
            continue
        uses = [
            (rule.ours, layer)
            for rule, layer in table.match(there)
            if rule.ours in wanted and (layer is None or 0 <= layer < wanted[rule.ours][0])
        ]
        found |= dict.fromkeys(uses, there)
        if not uses:
            unexpected.append(f"{there} {list(shape)} is unexpected")
    sources = {}
    for rule in table.rules:
        if rule.ours not in wanted:
            continue
        shape = wanted[rule.ours]
        layers = range(shape[0]) if rule.stacked else (None,)
        names = tuple(found.get((rule.ours, layer)) for layer in layers)
        expected = table.their_shape(rule, shape[1:] if rule.stacked else shape)
        for layer, name in zip(layers, names, strict=True):
            if name is None:
                if not rule.optional:
                    missing.append(f"{rule.name(layer)} {list(expected)} is missing")
            elif not _fits(rule, expected, shapes[name]):
                wrong.append(f"{name} is {list(shapes[name])}, expected {list(expected)}")
            elif dtypes[name].kind not in "fV":  # NumPy counts bfloat16 as V
                advice = "use the checkpoint from before quantization"
                wrong.append(f"{name} is {dtypes[name]}, not a float; {advice}")
        sources[rule.ours] = Source(rule=rule, names=names)
    if problems := [*missing, *unexpected, *dict.fromkeys(wrong)]:
        listed = "; ".join(group_by_layer(problems))
        raise ConvertError(f"{where} does not fit the configuration: {listed}")
    return sources


def group_by_layer(problems: Sequence[str]) -> list[str]:
    """Joins problems that differ only in the layer, so that the message can list all of them."""
    layers: dict[str, list[int]] = {}
    for problem in problems:
        number = re.search(r"\.(\d+)\.", problem)
        text = re.sub(r"\.\d+\.", ".{}.", problem, count=1)
        layers.setdefault(text, []).extend([int(number[1])] if number else [])
    out = []
    for text, found in layers.items():
        if len(found) < 2:
            out.append(text.replace("{}", str(found[0])) if found else text)
            continue
        found.sort()
        consecutive = found == list(range(found[0], found[-1] + 1))
        numbers = f"{found[0]} … {found[-1]}" if consecutive else ", ".join(map(str, found))
        out.append(f"{text} for {{}} = {numbers}")
    return out


def _fits(rule: Rule, expected: Shape, actual: Shape) -> bool:
    if len(expected) != len(actual):
        return False
    axes = rule.pattern.split() if VOCAB in rule.pattern else [""] * len(expected)
    return all(
        here == there or (axis == VOCAB and there < here)
        for here, there, axis in zip(expected, actual, axes, strict=False)
    )


@functools.cache
def _regex(prefix: str, theirs: str) -> re.Pattern[str]:
    optional = prefix if theirs.startswith(prefix) else ""
    rest = re.escape(theirs.removeprefix(optional)).replace(re.escape("{}"), r"(?P<layer>\d+)")
    return re.compile(f"(?:{re.escape(optional)})?{rest}")
