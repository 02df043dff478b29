"""Samples scenes: the objects and events of a clip, before any pixel is drawn.

    lattice of places, and the closed path of an object that moves right

      0 1 2         entering |.........| leaving, by `reach` beyond either edge
      3 4 5        x = (x0 + speed * frame + reach) mod (width + 2 reach) - reach
      6 7 8

Every choice is symmetric under renaming of colors, shapes, cells, directions and digits, so that no
answer is likelier than another given the words of its question. Events are timed to be visible in
four frames sampled uniformly in time.

A moving object crosses the canvas at constant speed, leaves it entirely and enters again at the
opposite side. Its position is therefore uniform along its path in every single frame, whatever its
direction: one frame never distinguishes left from right or up from down. It reveals the axis only
while an edge cuts off more of the object than is ever cut off on the other axis.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

from elva_jax.tools.datasets.moving_shapes.style import DIRECTIONS, Style

SAMPLES = 4  # events are visible in this many frames sampled uniformly in time
# The events of a video, by turns: motion, needle and digit in 4 of 10 videos each, order and change
# in 2 of 10 with two questions each.
THEMES = (
    ("order",),
    ("order", "digit"),
    ("needle",),
    ("needle", "digit"),
    ("needle", "motion"),
    ("needle", "motion", "digit"),
    ("change", "motion"),
    ("change", "digit"),
    ("motion",),
    (),
)
# The events of a video with a single object, by turns.
SINGLE_THEMES = (("motion",), ("motion", "digit"), ("motion",), ("change",), ("motion",))
# Each split gets some of 16 classes of scene contents.
_SHARE = {"test": (0, 1), "validation": (1, 2), "long": (2, 3), "train": (3, 12), "image": (12, 16)}


@dataclasses.dataclass(frozen=True)
class Look:
    """The appearance of an object."""

    colour: str
    shape: str
    size: str

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object, in pixels and frames; (x, y) is its center in frame 0."""

    look: Look
    radius: float
    x: float
    y: float
    cell: int  # index in POSITIONS; -1 for a moving object
    motion: str = ""  # one of DIRECTIONS; "": static
    speed: float = 0.0  # pixels per frame
    reach: float = 0.0  # distance of its center beyond an edge at which it changes sides
    enters: int = 0  # first frame in which it is visible
    leaves: int = 1 << 30  # first frame in which it no longer is
    turns_to: str = ""  # its colour from frame `turns_at` on
    turns_at: int = 0
    flash: tuple[int, int] = (0, 0)  # frames [start, stop) with lit surroundings


@dataclasses.dataclass(frozen=True)
class Digit:
    """A digit, visible in frames [enters, leaves)."""

    value: int
    x: float
    y: float
    cell: int
    enters: int
    leaves: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip before it is drawn; a still image has one frame."""

    width: int
    height: int
    frames: int
    fps: int
    grey: int
    noise: int
    noise_seed: int
    theme: tuple[str, ...]
    order: str  # of the objects of an order clip: appear | leave | alone; "" in other clips
    countable: bool  # the number of objects is uniform from 1 to 4
    things: tuple[Thing, ...]
    absent: tuple[Look, ...]  # looks from the same distribution that are not in the scene
    digit: Digit | None

    @property
    def scale(self) -> float:
        """Pixels per pixel of a canvas with a longest edge of 64; at least 1."""
        return _scale(self.width, self.height)

    @property
    def content(self) -> str:
        """Identifies the visible content without timing; no two splits share a content."""
        things = sorted(
            (
                t.look.colour,
                t.look.shape,
                t.look.size,
                t.cell,
                t.motion,
                t.turns_to,
                bool(t.flash[1]),
                *((round(t.x), round(t.y)) if t.motion else ()),
            )
            for t in self.things
        )
        digit = (self.digit.value, self.digit.cell) if self.digit else None
        ranked = sorted(self.things, key=lambda t: (t.enters, t.leaves)) if self.order else []
        ranks = [thing.look.name for thing in ranked]
        return json.dumps([self.width, self.height, self.grey, self.order, things, digit, ranks])


def sampled_frames(frames: int, count: int = SAMPLES) -> list[int]:
    """The frames shown at (i + 0.5) / count of the clip's duration."""
    return [int((i + 0.5) * frames / count) for i in range(count)]


def sample(style: Style, seed: int, split: str, index: int, *, single: bool = False) -> Scene:
    """Samples the scene of one record; a pure function of its arguments.

    A hash assigns each content to a split, which keeps the splits disjoint.

    Args:
      style: of the builder config.
      seed: the data set's seed.
      split: image | train | validation | test | long.
      index: number of the record in its split.
      single: a single object (or, in a still, a single digit).
    """
    low, high = _SHARE[split]
    rng = random.Random(f"{style.name}/{seed}/{split}/{index}")
    while True:
        if split == "image":
            scene = _image(style, rng, index, single=single)
        else:
            scene = _video(style, rng, index, single=single, long=split == "long")
        kind = int.from_bytes(hashlib.blake2b(scene.content.encode(), digest_size=2).digest()) % 16
        if low <= kind < high:
            return scene


def _looks(style: Style, rng: random.Random) -> list[Look]:
    """Four exchangeable looks: some for the objects, the others for wrong options."""
    sizes = [rng.choice(tuple(style.sizes)) for _ in range(4)]
    if style.distinct:
        colours, shapes = rng.sample(style.colours, 4), rng.sample(style.shapes, 4)
        return [Look(*look) for look in zip(colours, shapes, sizes, strict=True)]
    pairs = rng.sample(range(len(style.colours) * len(style.shapes)), 4)
    return [
        Look(style.colours[p // len(style.shapes)], style.shapes[p % len(style.shapes)], s)
        for p, s in zip(pairs, sizes, strict=True)
    ]


def _canvas(style: Style, rng: random.Random) -> dict[str, int]:
    width, height = rng.choice(style.canvases)
    return {
        "width": width,
        "height": height,
        "grey": rng.randint(*rng.choice(style.greys)),
        "noise": rng.randint(*style.noise),
        "noise_seed": rng.getrandbits(32),
    }


def _scale(width: int, height: int) -> float:
    return max(width, height, 64) / 64


def _point(
    style: Style, rng: random.Random, canvas: dict[str, int], cell: int
) -> tuple[float, float]:
    jitter = style.jitter * _scale(canvas["width"], canvas["height"])
    x = (cell % 3 + 0.5) * canvas["width"] / 3 + rng.uniform(-jitter, jitter)
    y = (cell // 3 + 0.5) * canvas["height"] / 3 + rng.uniform(-jitter, jitter)
    return x, y


def _image(style: Style, rng: random.Random, index: int, *, single: bool) -> Scene:
    canvas = _canvas(style, rng)
    looks, cells = _looks(style, rng), rng.sample(range(9), 5)
    with_digit = index % 6 == 0 if single else index % 2 == 0
    count = (0 if with_digit else 1) if single else rng.randint(1, 4)
    things = _static(style, rng, canvas, looks[:count], cells)
    digit = None
    if with_digit:
        digit = Digit(rng.randrange(10), *_point(style, rng, canvas, cells[4]), cells[4], 0, 1)
    return Scene(
        **canvas,
        frames=1,
        fps=1,
        theme=("digit",) if digit else (),
        order="",
        countable=not single,
        things=things,
        absent=tuple(looks[count:]),
        digit=digit,
    )


def _static(
    style: Style, rng: random.Random, canvas: dict[str, int], looks: list[Look], cells: list[int]
) -> tuple[Thing, ...]:
    scale = _scale(canvas["width"], canvas["height"])
    return tuple(
        Thing(look, style.sizes[look.size] * scale, *_point(style, rng, canvas, cell), cell)
        for look, cell in zip(looks, cells, strict=False)
    )


def _video(style: Style, rng: random.Random, index: int, *, single: bool, long: bool) -> Scene:
    canvas = _canvas(style, rng)
    frames = rng.randint(32, 64) if long else rng.choice(style.frames)
    fps = rng.choice(style.fps)
    themes = (("needle",), ("needle", "digit")) if long else SINGLE_THEMES if single else THEMES
    theme = themes[index % len(themes)]
    looks, cells = _looks(style, rng), rng.sample(range(9), 5)
    countable = not single and not {"order", "needle"} & set(theme)
    count = 1 if single else rng.randint(1, 4) if countable else rng.randint(3, 4)
    things = list(_static(style, rng, canvas, looks[:count], cells))
    order = ""
    if "motion" in theme:
        movers = rng.randint(1, min(style.movers, max(1, count - 2)))
        for i in range(movers):  # things are exchangeable: the first ones move
            things[i] = _moving(style, rng, canvas, things[i], frames)
    if "change" in theme:
        colours = [c for c in style.colours if c not in {look.colour for look in looks[:count]}]
        colour, slot = rng.choice(colours), rng.randint(1, SAMPLES - 1)
        at = _boundary(rng, frames, slot)
        things[-1] = dataclasses.replace(things[-1], turns_to=colour, turns_at=at)
    if "order" in theme:
        order = rng.choice(("appear", "leave", "alone"))
        things = _ordered(rng, things, frames, order)
    if "needle" in theme:
        things[-1] = dataclasses.replace(things[-1], flash=_flash(rng, frames, long=long))
    event = range(*things[-1].flash)  # the last thing's, in which it must stay visible
    if "change" in theme:
        event = range(frames)
    if _hidden(things, canvas, event):
        return _video(style, rng, index, single=single, long=long)
    digit = None
    if "digit" in theme:
        value, point = rng.randrange(10), _point(style, rng, canvas, cells[4])
        digit = Digit(value, *point, cells[4], *_digit_time(rng, frames, long=long))
    rng.shuffle(things)
    return Scene(
        **canvas,
        frames=frames,
        fps=fps,
        theme=theme,
        order=order,
        countable=countable,
        things=tuple(things),
        absent=tuple(looks[count:]),
        digit=digit,
    )


def _moving(
    style: Style, rng: random.Random, canvas: dict[str, int], thing: Thing, frames: int
) -> Thing:
    """Gives a thing a direction, a speed, and a uniform position on its closed path."""
    motion = rng.choice(DIRECTIONS)
    scale = _scale(canvas["width"], canvas["height"])
    speed = rng.uniform(*style.speed) * scale * SAMPLES / frames
    horizontal = motion in ("left", "right")
    along, across = canvas["width"], canvas["height"]
    if not horizontal:
        along, across = across, along
    if style.lanes:
        sign = 1 if motion in ("right", "down") else -1
        # A path of four places, of which the fourth is off the canvas.
        a = (rng.randrange(4) + 0.5) * along / 3 - sign * speed * sampled_frames(frames)[0]
        b = (rng.randrange(3) + 0.5) * across / 3
        reach = along / 6
    else:
        a = rng.uniform(-thing.radius, along + thing.radius)
        b = rng.uniform(thing.radius / 2, across - thing.radius / 2)
        reach = thing.radius
    x, y = (a, b) if horizontal else (b, a)
    return dataclasses.replace(thing, x=x, y=y, cell=-1, motion=motion, speed=speed, reach=reach)


def center(thing: Thing, scene: Scene, frame: int) -> tuple[float, float]:
    """The center of a thing in a frame, in pixels; a moving thing changes sides off the canvas."""
    return _center(thing, scene.width, scene.height, frame)


def _center(thing: Thing, width: int, height: int, frame: int) -> tuple[float, float]:
    if not thing.motion:
        return thing.x, thing.y
    step = thing.speed * frame * (1 if thing.motion in ("right", "down") else -1)
    r = thing.reach
    if thing.motion in ("left", "right"):
        return (thing.x + step + r) % (width + 2 * r) - r, thing.y
    return thing.x, (thing.y + step + r) % (height + 2 * r) - r


def _hidden(things: list[Thing], canvas: dict[str, int], event: range) -> bool:
    """Whether a moving object touches the last one during its event, and could hide it."""
    target = things[-1]
    for thing in things:
        if thing.motion:
            for frame in event:
                x, y = _center(thing, canvas["width"], canvas["height"], frame)
                if max(abs(x - target.x), abs(y - target.y)) < thing.radius + target.radius:
                    return True
    return False


def _boundary(rng: random.Random, frames: int, slot: int) -> int:
    """A frame from sampled frame `slot` - 1 to `slot`; slot 0 is the start, SAMPLES the end."""
    if slot in (0, SAMPLES):
        return 0 if slot == 0 else frames
    at = sampled_frames(frames)
    return rng.randint(at[slot - 1] + 1, at[slot])


def _ordered(rng: random.Random, things: list[Thing], frames: int, order: str) -> list[Thing]:
    """Lets things appear or leave one after another, or appear one at a time.

    Every step is visible in the sampled frames.
    """
    slots = [0, *sorted(rng.sample(range(1, SAMPLES), len(things) - 1))]
    times = [*(_boundary(rng, frames, s) for s in slots), frames]
    out = []
    for k, thing in enumerate(things):
        enters = 0 if order == "leave" else times[k]
        leaves = frames if order == "appear" else times[k + 1]
        out.append(dataclasses.replace(thing, enters=enters, leaves=leaves))
    return out


def _flash(rng: random.Random, frames: int, *, long: bool) -> tuple[int, int]:
    """Two or three frames around a sampled one; in long clips, one to three frames anywhere."""
    length = rng.randint(1, 3) if long else rng.randint(2, 3)
    if long:
        start = rng.randint(1, frames - 1 - length)
        return start, start + length
    at = rng.choice(sampled_frames(frames))
    start = min(max(at - rng.randint(0, length - 1), 0), frames - length)
    return start, start + length


def _digit_time(rng: random.Random, frames: int, *, long: bool) -> tuple[int, int]:
    if long:
        start = rng.randint(0, frames - 6)
        return start, start + rng.randint(3, 6)
    if rng.random() < 0.5:
        return 0, frames
    slot = rng.randint(0, SAMPLES - 2)
    return _boundary(rng, frames, slot), _boundary(rng, frames, slot + 2)
