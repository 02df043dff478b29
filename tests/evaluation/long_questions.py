"""Questions around the longest sequence of a model: within it, beyond it, and too long to ask."""

from elva_jax import testing

LONGEST = 96  # tokens; eight times as many with RoPE scaled as far as it goes
NEW = 6
# Words of a question by name. Beside a clip of about a hundred tokens, all are beyond LONGEST.
WORDS = {"short": 2, "long": 60, "too long": 400, "last": 3}


def model():
    """A tiny model of short sequences."""
    return testing.tiny_model(max_position=LONGEST)


def text(name):
    """The question of a name."""
    return f"{'Where to? ' * WORDS[name]}What moves?"
