"""The prompts for captions (paper, recaptioning), in our own words.

Their wording is part of a run's settings (`fingerprint`): changing a word here makes `elva
recaption` refuse to continue older captions.
"""

from __future__ import annotations

import hashlib
import re

from elva_jax.tools.recaption.manifest import Item

MAX_HINTS = 40  # most objects, and most strings
HINT_CHARACTERS = 80
CAPTION_CHARACTERS = 600

IMAGE = """\
Look closely at the image and describe it in detail, in connected sentences.

Say what is there and how it looks: people, animals and things with their number, colours, \
shapes, materials and where they are, what they are doing and how they relate to one another, \
then the setting, the light and the style of the picture. Quote text that you can read.
{hints}
Describe only what the image shows. Where you are unsure, leave it out. Begin with the \
description itself, without an introduction, and do not mention these instructions."""

VIDEO = """\
These are the frames of one video in order, {rate}. Describe the video in detail, in connected \
sentences.

Tell the events in the order in which they happen: what is there at the beginning, what changes, \
and how it ends. Tell people apart by their looks, such as clothes, hair, age and build, and keep \
calling each of them the same throughout. Give as much detail as you can about colours, shapes, \
actions and scenes, the background and movements of the camera included.

Neighbouring frames are often nearly identical. That comes from sampling the video; it is not an \
effect, a freeze or slow motion, and not worth mentioning.
{hints}
Write about the video, never about its frames. Describe only what it shows; where you are unsure, \
leave it out. Begin with the description itself, without an introduction, and do not mention \
these instructions."""

HINTS = """
The following comes from other sources and may be wrong or incomplete. Use what agrees with the \
{kind}, and silently ignore the rest.
{lines}
"""


def fingerprint() -> str:
    """A short hash of the wording, which all captions of one file share."""
    return hashlib.sha256("\0".join((IMAGE, VIDEO, HINTS)).encode()).hexdigest()[:12]


def prompt(item: Item, *, sampled: bool = False) -> str:
    """The prompt for an item, with the manifest's knowledge as hints.

    Args:
      item: the medium and its hints.
      sampled: whether the video has more seconds than frames may be sent, so that its frames are
        more than a second apart.
    """
    lines = []
    if caption := _plain(item.caption, CAPTION_CHARACTERS):
        about = "for knowledge of the world such as names, places and occasions"
        lines.append(f"- A short caption, {about}: {caption}")
    if objects := _listed(item.objects):
        lines.append(f"- Objects that a detector reports: {objects}")
    if ocr := _listed(item.ocr, quote='"'):
        lines.append(f"- Text that was recognised: {ocr}")
    hints = HINTS.format(kind=item.kind, lines="\n".join(lines)) if lines else ""
    rate = "evenly spread over its length" if sampled else "one for every second"
    return (IMAGE if item.kind == "image" else VIDEO).format(hints=hints, rate=rate)


def _listed(strings: tuple[str, ...], quote: str = "") -> str:
    plain = dict.fromkeys(_plain(string, HINT_CHARACTERS) for string in strings)
    shown = [string for string in plain if string][:MAX_HINTS]
    return ", ".join(f"{quote}{string}{quote}" for string in shown)


def _plain(text: str, limit: int) -> str:
    """One line of at most `limit` characters, without chat tokens: hints are not trusted."""
    return re.sub(r"<\|+", "<", " ".join(text.split()))[:limit].strip()
