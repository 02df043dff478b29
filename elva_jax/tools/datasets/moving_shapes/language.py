"""Texts for a scene: captions, questions with answers, and wrong options.

No words of a question or an option make one answer likelier than another, because `scene` samples
what they ask about symmetrically.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from elva_jax.tools.datasets.moving_shapes.scene import Look, Scene, Thing
from elva_jax.tools.datasets.moving_shapes.style import DIRECTIONS, POSITIONS, Style
from elva_jax.tools.datasets.moving_shapes.wordings import (
    CAPTION_PROMPTS,
    CAPTION_WORDINGS,
    WORDINGS,
)

FAMILIES = ("colour", "shape", "count", "position", "motion", "order", "change", "needle", "digit")
NUMBERS = ("one", "two", "three", "four")
LETTERS = "ABCD"
Question = tuple[str, str, list[str]]  # question, answer, wrong options

_PLAIN = 2  # wordings used by a style that is not varied


def annotate(scene: Scene, style: Style, seed: int, split: str, index: int) -> dict:
    """The annotation of one record as JSON; a pure function of its arguments.

    Returns:
      {"scene", "objects", "digit", "named_objects", "captions": {"object", "caption"},
      "questions"}; see `_Speaker`.
    """
    rng = random.Random(f"words/{style.name}/{seed}/{split}/{index}")
    speaker = _Speaker(scene, style, rng)
    return {
        "scene": {
            "width": scene.width,
            "height": scene.height,
            "frames": scene.frames,
            "fps": scene.fps,
            "theme": list(scene.theme),
        },
        "objects": [_facts(thing) for thing in scene.things],
        "digit": scene.digit.value if scene.digit else None,
        "named_objects": [thing.look.name for thing in scene.things],
        "captions": {"object": speaker.object_captions(), "caption": speaker.scene_captions()},
        "questions": speaker.questions(f"{style.name}/{seed}/{split}", index),
    }


def letter_index(key: str, index: int) -> int:
    """The place of the right option.

    Each place occurs once in every four consecutive indices of a key.
    """
    order = [0, 1, 2, 3]
    random.Random(f"letters/{key}/{index // 4}").shuffle(order)
    return order[index % 4]


def _facts(thing: Thing) -> dict[str, Any]:
    return {
        "name": thing.look.name,
        "colour": thing.look.colour,
        "shape": thing.look.shape,
        "size": thing.look.size,
        "position": POSITIONS[thing.cell] if thing.cell >= 0 else None,
        "motion": thing.motion or None,
        "turns_to": thing.turns_to or None,
        "flashes": list(thing.flash) if thing.flash[1] else None,
    }


def _at(position: str) -> str:
    return "in the middle" if position == "middle" else f"at the {position}"


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


class _Speaker:
    """Makes the texts for one scene, with the random numbers of its record."""

    def __init__(self, scene: Scene, style: Style, rng: random.Random):
        self.scene = scene
        self.style = style
        self.rng = rng
        self.looks = [thing.look for thing in scene.things]

    def pick(self, wordings: Sequence[str], **words: str) -> str:
        """One of the wordings, filled in."""
        return self.rng.choice(wordings if self.style.varied else wordings[:_PLAIN]).format(**words)

    def unique(self, thing: Thing, attribute: str) -> bool:
        """Whether an attribute singles out a thing; a changing colour never does."""
        value = getattr(thing.look, attribute)
        if attribute == "colour" and thing.turns_to:
            return False
        others = [t for t in self.scene.things if t is not thing]
        return all(
            getattr(t.look, attribute) != value and (attribute != "colour" or t.turns_to != value)
            for t in others
        )

    def refer(self, thing: Thing, hide: Sequence[str] = ()) -> str | None:
        """A short name of a thing that does not tell `hide` (colour, shape, position), or None."""
        names = []
        if "colour" not in hide and self.unique(thing, "colour"):
            names.append(f"the {thing.look.colour} object")
        if "shape" not in hide and self.unique(thing, "shape"):
            names.append(f"the {thing.look.shape}")
        if names:
            return self.rng.choice(names)
        if "colour" not in hide and "shape" not in hide and not thing.turns_to:
            return f"the {thing.look.name}"
        if "position" not in hide and thing.cell >= 0 and not self.scene.order:
            return f"the object {_at(POSITIONS[thing.cell])}"
        return None

    # Captions

    def object_captions(self) -> list[dict]:
        """Short captions of single objects, which are named by colour, shape or place."""
        out = []
        for thing in self.scene.things:
            if name := self.refer(thing):
                out.append(
                    {
                        "question": self.pick(CAPTION_WORDINGS["object"], it=name),
                        "answer": self.describe(thing),
                    }
                )
            if thing.cell >= 0 and not self.scene.order and not thing.turns_to:
                where = _at(POSITIONS[thing.cell])
                out.append(
                    {
                        "question": self.pick(CAPTION_WORDINGS["place"], at=where),
                        "answer": self.noun(thing),
                    }
                )
        return out

    def noun(self, thing: Thing) -> str:
        """A phrase such as `a red circle`, with the size if the style has several."""
        size = f"{thing.look.size} " if len(self.style.sizes) > 1 else ""
        return _article(f"{size}{thing.look.name}")

    def describe(self, thing: Thing) -> str:
        """A phrase such as `a red circle at the top left that flashes`."""
        words = self.noun(thing)
        words += f" moving {thing.motion}" if thing.motion else f" {_at(POSITIONS[thing.cell])}"
        if thing.turns_to:
            words += f" that turns {thing.turns_to}"
        if thing.flash[1]:
            words += " that flashes"
        return words

    def scene_captions(self) -> list[dict]:
        """Captions of the whole clip, in two wordings."""
        media = "image" if self.scene.frames == 1 else "video"
        return [
            {"question": prompt.format(media=media), "answer": text}
            for prompt, text in zip(self._prompts(), self._texts(), strict=True)
        ]

    def _prompts(self) -> list[str]:
        return self.rng.sample(CAPTION_PROMPTS if self.style.varied else CAPTION_PROMPTS[:3], 2)

    def _texts(self) -> list[str]:
        return (
            [self._order_text(self.describe), self._order_text(self.noun)]
            if self.scene.order
            else [self._listing(), self._counting()]
        )

    def _listing(self) -> str:
        things = [self.describe(t) for t in self._shuffled()]
        if self.scene.digit:
            things.append(f"the digit {self.scene.digit.value}")
        return _sentence(_join(things))

    def _counting(self) -> str:
        things = self._shuffled()
        parts = []
        if things:
            number = NUMBERS[len(things) - 1]
            verb, plural = ("is", "") if len(things) == 1 else ("are", "s")
            parts.append(
                f"There {verb} {number} object{plural}: {_join([self.noun(t) for t in things])}."
            )
        for t in things:
            parts += [_sentence(f"the {t.look.name} {event}") for event in self._events(t)]
        if self.scene.digit:
            parts.append(f"The digit is {self.scene.digit.value}.")
        return " ".join(parts)

    def _events(self, thing: Thing) -> list[str]:
        events = [f"moves {thing.motion}"] if thing.motion else [f"is {_at(POSITIONS[thing.cell])}"]
        if thing.turns_to:
            events.append(f"turns {thing.turns_to}")
        if thing.flash[1]:
            events.append("flashes")
        return events

    def _order_text(self, name: Callable[[Thing], str]) -> str:
        names = [name(thing) for thing in self.ranked()]
        if self.scene.order == "leave":
            middle = ", then ".join(names[1:-1])
            text = _sentence(f"first {names[0]} disappears, then {middle}, and {names[-1]} stays")
        else:
            text = _sentence(f"first {names[0]} appears, then {', then '.join(names[1:])}")
        return text + f" The digit {self.scene.digit.value} is shown." if self.scene.digit else text

    def _shuffled(self) -> list[Thing]:
        return self.rng.sample(self.scene.things, len(self.scene.things))

    def ranked(self) -> list[Thing]:
        """The things in the order in which they appear or disappear."""
        return sorted(self.scene.things, key=lambda t: (t.enters, t.leaves))

    # Questions

    def questions(self, key: str, index: int) -> list[dict]:
        """The record's questions; families are balanced over consecutive indices.

        Returns:
          {"family", "question", "answer", "options": four of them, "letter"} per question.
        """
        out = []
        for family, number in self._families(index):
            for variant, (question, answer, options) in enumerate(_ASK[family](self)):
                place = letter_index(f"{key}/{family}/{variant}/{index % 10}", number)
                options = [o for o in dict.fromkeys(options) if o != answer][:3]
                self.rng.shuffle(options)
                options.insert(place, answer)
                out.append(
                    {
                        "family": family,
                        "question": question,
                        "answer": answer,
                        "options": options,
                        "letter": LETTERS[place],
                    }
                )
        self.rng.shuffle(out)
        return out

    def _families(self, index: int) -> list[tuple[str, int]]:
        """The families of the questions, each with its number among the records of this theme."""
        scene, (block, place) = self.scene, divmod(index, 10)
        turn = (
            place + block
        ) % 5  # each family in two of five records, shifted from block to block
        turns = {"colour": (0, 1), "shape": (2, 3), "position": (4, 0)}
        if scene.frames == 1:
            families = [(family, block) for family in turns if scene.things]
        else:
            families = [
                (family, block // 5 * 2 + two.index(turn))
                for family, two in turns.items()
                if turn in two
            ]
        if scene.countable and scene.things:
            families.append(("count", block))
        return families + [(family, block) for family in scene.theme]

    def others(self, values: Sequence[str], near: Sequence[str]) -> list[str]:
        """Wrong options: first those that occur in the scene, then the rest, both shuffled."""
        near = list(dict.fromkeys(near))
        rest = [v for v in values if v not in near]
        self.rng.shuffle(near)
        self.rng.shuffle(rest)
        return near + rest

    def ask_look(self, attribute: str) -> list[Question]:
        """Asks for the colour or the shape of an object."""
        for thing in self._shuffled():
            if attribute == "colour" and thing.turns_to:
                continue
            if name := self.refer(thing, hide=(attribute,)):
                break
        else:
            return []
        values = self.style.colours if attribute == "colour" else self.style.shapes
        near = [getattr(look, attribute) for look in self.looks]
        return [
            (
                self.pick(WORDINGS[attribute], it=name),
                getattr(thing.look, attribute),
                self.others(values, near),
            )
        ]

    def ask_count(self) -> list[Question]:
        """Asks for the number of objects."""
        return [
            (self.pick(WORDINGS["count"]), NUMBERS[len(self.looks) - 1], self.others(NUMBERS, ()))
        ]

    def ask_position(self) -> list[Question]:
        """Asks where a static object is."""
        for thing in self._shuffled():
            if thing.cell >= 0 and (name := self.refer(thing, hide=("position",))):
                near = [POSITIONS[t.cell] for t in self.scene.things if t.cell >= 0]
                return [
                    (
                        self.pick(WORDINGS["position"], it=name),
                        POSITIONS[thing.cell],
                        self.others(POSITIONS, near),
                    )
                ]
        return []

    def ask_motion(self) -> list[Question]:
        """Asks which way an object moves."""
        movers = [t for t in self._shuffled() if t.motion]
        if not movers or not (name := self.refer(movers[0])):
            return []
        return [
            (self.pick(WORDINGS["motion"], it=name), movers[0].motion, self.others(DIRECTIONS, ()))
        ]

    def ask_order(self) -> list[Question]:
        """Asks for the first and the last object of an order."""
        ranked = self.ranked()
        kind = "leave" if self.scene.order == "leave" else "appear"
        return [
            self._ask_name(f"order {kind} {end}", thing)
            for end, thing in (("first", ranked[0]), ("last", ranked[-1]))
        ]

    def ask_needle(self) -> list[Question]:
        """Asks which object flashes."""
        return [self._ask_name("needle", next(t for t in self.scene.things if t.flash[1]))]

    def _ask_name(self, wording: str, thing: Thing) -> Question:
        names: list[Look] = [*self.looks, *self.scene.absent]
        return (
            self.pick(WORDINGS[wording]),
            thing.look.name,
            self.others([n.name for n in names], [look.name for look in self.looks]),
        )

    def ask_change(self) -> list[Question]:
        """Asks for the colours after and before a change."""
        thing = next(t for t in self.scene.things if t.turns_to)
        name = self.refer(thing, hide=("position",)) or "the object that changes"
        near = [
            look.colour
            for look in self.looks
            if look.colour not in (thing.look.colour, thing.turns_to)
        ]
        out = []
        for wording, answer, other in (
            ("change to", thing.turns_to, thing.look.colour),
            ("change from", thing.look.colour, thing.turns_to),
        ):
            out.append(
                (
                    self.pick(WORDINGS[wording], it=name),
                    answer,
                    [other, *self.others(self.style.colours, near)],
                )
            )
        return out

    def ask_digit(self) -> list[Question]:
        """Asks which digit is shown."""
        digit = str(self.scene.digit.value) if self.scene.digit else ""
        return [(self.pick(WORDINGS["digit"]), digit, self.others([str(d) for d in range(10)], ()))]


_ASK: dict[str, Callable[[_Speaker], list[Question]]] = {
    "colour": lambda s: s.ask_look("colour"),
    "shape": lambda s: s.ask_look("shape"),
    "count": _Speaker.ask_count,
    "position": _Speaker.ask_position,
    "motion": _Speaker.ask_motion,
    "order": _Speaker.ask_order,
    "change": _Speaker.ask_change,
    "needle": _Speaker.ask_needle,
    "digit": _Speaker.ask_digit,
}


def _join(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
