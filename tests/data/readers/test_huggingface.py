"""Tests of Hugging Face dataset folders, in the layouts that `datasets` 5 writes."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from elva_jax.config import schema
from elva_jax.data import sources
from elva_jax.data.example import Media, Turn
from elva_jax.data.readers.huggingface import HuggingFaceFolder
from elva_jax.data.readers.records import QUESTIONS
from elva_jax.errors import DataError, RecordError

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


def picture(k: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), k, np.uint8)).save(out, "PNG")
    return out.getvalue()


def row(k: int, path: str | None = None) -> dict:
    turns = [
        {"from": "human", "value": f"<image>\nWhat is {k}?"},
        {"from": "gpt", "value": f"It is {k}."},
    ]
    return {
        "id": str(k),
        "image": {"bytes": None if path else picture(k), "path": path},
        "conversations": turns,
    }


def table(rows) -> pa.Table:
    return pa.Table.from_pylist(
        rows, pa.schema([("id", pa.string()), ("image", MEDIUM), ("conversations", TURNS)])
    )


def save_arrow(folder, rows, batch=2, files=2):
    """Writes the files of Dataset.save_to_disk: Arrow streams, and the JSON that lists them."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{files:05d}.arrow" for k in range(files)]
    share = -(-len(rows) // files)
    for k, name in enumerate(names):
        part = table(rows[k * share : (k + 1) * share])
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, part.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=batch)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None})
    )


def save_parquet(folder, rows, batch=3):
    (folder / "data").mkdir(parents=True)
    pq.write_table(
        table(rows[:4]), folder / "data" / "train-00000-of-00002.parquet", row_group_size=batch
    )
    pq.write_table(
        table(rows[4:]), folder / "data" / "train-00001-of-00002.parquet", row_group_size=batch
    )


def expected(k: int):
    return (Media(picture(k), "image"),), (Turn(f"<image>\nWhat is {k}?", f"It is {k}."),)


@pytest.mark.parametrize("save", [save_arrow, save_parquet])
def test_rows_can_be_read_in_any_order(tmp_path, save):
    save(tmp_path / "set", [row(k) for k in range(9)])
    examples = pickle.loads(pickle.dumps(HuggingFaceFolder(tmp_path / "set")))
    assert len(examples) == 9
    for k in (8, 0, 4, 3, 7, 1, 5, 2, 6):
        assert (examples[k].media, examples[k].turns) == expected(k)
    assert len({example.key for example in examples}) == 9


def test_folder_is_a_source_of_a_mixture(tmp_path):
    save_arrow(tmp_path / "all" / "train", [row(k) for k in range(4)])
    save_arrow(tmp_path / "all" / "test", [row(9)], files=1)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (only,) = sources.open_examples(schema.source(f"hf:{tmp_path}/all", "test"), "")
    assert only.turns == expected(9)[1]
    with pytest.raises(
        DataError, match=r"all: has several splits; set split to one of train, test"
    ):
        HuggingFaceFolder(tmp_path / "all")
    with pytest.raises(DataError, match=r"all: no split 'val'; it has train, test"):
        HuggingFaceFolder(tmp_path / "all", "val")


def test_paths_are_relative_to_the_root(tmp_path):
    save_arrow(tmp_path / "set", [row(0, "a/0.png"), row(1, "../1.png")], files=1)
    examples = HuggingFaceFolder(tmp_path / "set", root=str(tmp_path))
    assert examples[0].media == (Media(str(tmp_path.resolve() / "a" / "0.png"), "image"),)
    with pytest.raises(
        RecordError, match=r"data-00000-of-00001\.arrow\[1\]: a media path leaves the root folder"
    ):
        examples[1]


def test_captions_become_conversations(tmp_path):
    (tmp_path / "set").mkdir()
    rows = [
        {"video": {"bytes": b"mp4", "path": "x.mp4"}, "caption": "A cat."},
        {"video": None, "caption": "Nothing."},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train.parquet")
    examples = HuggingFaceFolder(tmp_path / "set")
    assert examples[0].turns == (Turn(QUESTIONS["video"], "A cat.", task="caption"),)
    assert examples[0].media == (Media(b"mp4", "video"),)
    with pytest.raises(RecordError, match="has neither a conversation nor a medium"):
        examples[1]


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        HuggingFaceFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no data set saved to disk, and no Parquet files"):
        HuggingFaceFolder(tmp_path)
    save_arrow(tmp_path / "set", [row(0)], files=1)
    (tmp_path / "set" / "data-00000-of-00001.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow: cannot be read as arrow"):
        HuggingFaceFolder(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"set/.*json: is not JSON \(Expecting"):
        HuggingFaceFolder(tmp_path / "set")
