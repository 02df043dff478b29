"""Media that cannot be read."""

import pytest

from elva_jax.data.example import Media
from elva_jax.errors import LayoutError
from elva_jax.inference.batches.queries import Group, Item
from elva_jax.inference.batches.reading import read_ahead


@pytest.mark.parametrize("error", [ValueError("\x1b[2Jone\ntwo"), LayoutError("\x1b[2Jone")])
def test_a_reason_is_one_line_whatever_the_id_and_the_decoder_say(error):
    def read(medium, name):
        raise error

    medium = Media(b"image", "image")
    item = Item(tag=None, name="\x1b]0;id\x07\n=1", media=(medium,), make=lambda _: None)
    group = Group(media=(medium,), items=(item,))
    ((_, reason),) = read_ahead([group], read, ahead=1, workers=1)
    assert reason.isprintable()
    assert reason.startswith(r"medium of '\x1b]0;id\x07\n=1': ")
    assert reason.endswith(r"\x1b[2Jone")
