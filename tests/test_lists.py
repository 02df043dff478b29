"""Refusals that list what is allowed: the list is the table's, and each entry passes that door."""

import re

import jax.numpy as jnp
import pytest

from elva_jax.config import schema
from elva_jax.data import sources
from elva_jax.errors import DataError, ElvaError
from elva_jax.evaluation.compare import HF_KINDS, open_side
from elva_jax.evaluation.questions import read_split
from elva_jax.hf import elva, export, import_checkpoint, load, qwen2
from elva_jax.ops import attention, rope
from elva_jax.ops.attention.dispatch import IMPLEMENTATIONS
from elva_jax.tools.datasets.moving_shapes import builder
from elva_jax.video import hybrid

UNKNOWN = "unknown_"


def written(folder, kind):
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder


DOORS = {
    "elva evaluate --data": (
        lambda name, folder: read_split(name, "test", folder, None), sources.READERS
    ),
    "mixture": (
        lambda name, folder: sources.open_examples(
            schema.SourceConfig(name=name, split="train"), folder
        ),
        (*sources.READERS, *sources.FILE_READERS, "hf:FOLDER"),
    ),
    "weights": (
        lambda name, _: load.read_config({"model_type": name}, "folder"),
        (*qwen2.MODEL_TYPES, elva.MODEL_TYPE, *load.TOWER_TYPES),
    ),
    "elva convert check": (lambda name, folder: open_side(written(folder, name)), HF_KINDS),
    "import's dtype": (
        lambda name, folder: import_checkpoint.import_weights(folder, folder / "x", dtype=name),
        import_checkpoint.DTYPES,
    ),
    "export's dtype": (
        lambda name, folder: export.export(folder, folder / "x", dtype=name), export.DTYPES
    ),
    "RoPE": (
        lambda name, _: rope.frequencies(
            8, 1e4, rope.RopeScaling(kind=name, factor=2.0, original_max_position=8), 16
        ),
        rope.KINDS,
    ),
    "attention": (
        lambda name, _: attention.choose_implementation(64, jnp.bfloat16, name), IMPLEMENTATIONS
    ),
    "hybrid resolution": (
        lambda name, _: hybrid.Hybrid(policy=name), hybrid.POLICIES
    ),
    "moving_shapes": (
        lambda name, folder: builder.build(folder / "file" / "x", name), builder.SIZES
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_the_list_of_a_refusal_is_true(door, tmp_path):
    call, table = DOORS[door]
    (tmp_path / "file").touch()
    with pytest.raises(ElvaError) as caught:
        call("?" + UNKNOWN, tmp_path)
    told = str(caught.value)
    for name in table:
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", told), name
        again = ""
        try:
            call(f"x{name}" if name.startswith(".") else name, tmp_path)
        except (ElvaError, OSError) as error:
            again = str(error)
        assert told.partition(UNKNOWN)[2] not in again, name


def test_a_file_of_questions_is_not_promised(tmp_path):
    """`elva evaluate` reads built data sets alone; its list once named .json."""
    for name in ("own.json", "own.jsonl", "hf:own"):
        with pytest.raises(DataError, match="is a file or folder, not a built data set") as caught:
            read_split(name, "test", tmp_path, None)
        assert str(caught.value).count("json") == name.count("json")
