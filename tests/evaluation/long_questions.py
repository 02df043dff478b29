"""Questions around the longest sequence of a model: within it, beyond it, and too long to ask."""

from elva_jax import testing

LONGEST = 96  # tokens; eight times as many with RoPE scaled as far as it goes
NEW = 2
# Words of a question by name. Beside a clip of about a hundred tokens, all are beyond LONGEST.
WORDS = {"short": 2, "too long": 400, "long": 60}


def model():
    """A model of short sequences that is compiled soon: one layer, nothing merges."""
    names = ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")
    none = dict.fromkeys(names, ())
    return testing.tiny_model(max_position=LONGEST, num_layers=1, **none)


def text(name):
    """The question of a name."""
    return f"{'Where to? ' * WORDS[name]}What moves?"
