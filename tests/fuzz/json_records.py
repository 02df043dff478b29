"""Fuzzes JSON: record files, manifests, a run's config.json and a chat.

`python tests/fuzz/json_records.py --findings DIR`. The first byte of an input chooses the door.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import common

from elva_jax.checkpoints.restore import load_run
from elva_jax.config.load import load
from elva_jax.config.schema import SourceConfig
from elva_jax.config.serialize import config_to_dict
from elva_jax.data.conversation import render, turn_tokens
from elva_jax.data.sources import open_examples
from elva_jax.errors import RecordError
from elva_jax.evaluation.answers import exact_match, option_index
from elva_jax.hf.load import is_hf_source, read_config
from elva_jax.hf.tensor_store import read_config_file
from elva_jax.testing.models import tiny_tokenizer
from elva_jax.tools.recaption import manifest
from elva_jax.video.layout import Clip

ROOT = Path(__file__).parents[2]
RUN = config_to_dict(load(str(ROOT / "configs/tiny.py")))
TOKENIZER = tiny_tokenizer()
LLAVA = {
    "id": "7",
    "video": "a.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat moves?"},
        {"from": "gpt", "value": "A circle."},
    ],
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": "a.mp4", "fps": 2.0, "nframes": 8, "max_pixels": 9000},
                {"type": "text", "text": "What moves?"},
            ],
        },
        {"role": "assistant", "content": "A circle."},
    ]
}
FRAMES = {"video": ["a.png", "b.png"], "start": 0.5, "end": 2, "caption": "A circle."}
ITEM = {"id": "7", "image": "a.png", "caption": "x", "objects": ["ball"], "ocr": ["STOP"]}
HF = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
SIGLIP = {
    "model_type": "siglip",
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    },
    "text_config": {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 16},
}


def records(data: bytes, folder: Path, suffix: str) -> None:
    """Opens a file of records, reads each and renders it as training would."""
    path = folder / f"data{suffix}"
    path.write_bytes(data)
    source = SourceConfig(name=str(path))
    examples = open_examples(source, str(folder), str(folder))
    for index in range(min(len(examples), 20)):
        try:
            example = examples[index]
        except RecordError:
            continue
        clips = [Clip([(2, 3)]) for _ in example.media]
        render(example, TOKENIZER, clips)
        for turn in example.turns:
            turn_tokens(turn, TOKENIZER)
            exact_match(turn.answer, turn.question)
            option_index(turn.answer, turn.options or ())


def items(data: bytes, folder: Path) -> None:
    """Reads the manifest of a recaptioning."""
    path = folder / "manifest.jsonl"
    path.write_bytes(data)
    list(manifest.read(path, folder))


def run_config(data: bytes, folder: Path) -> None:
    """Loads a run whose config.json this is."""
    path = folder / "config.json"
    path.write_bytes(data)
    (folder / "image").mkdir()
    load_run(folder)


def hf_config(data: bytes, folder: Path) -> None:
    """Reads the config.json of a Hugging Face folder."""
    (folder / "config.json").write_bytes(data)
    is_hf_source(folder)
    read_config(read_config_file(folder), str(folder))


DOORS = {
    b"j": lambda data, folder: records(data, folder, ".json"),
    b"l": lambda data, folder: records(data, folder, ".jsonl"),
    b"c": lambda data, folder: records(data, folder, ".csv"),
    b"m": items,
    b"r": run_config,
    b"h": hf_config,
}
KINDS = {
    b"j": [[LLAVA, CHAT], [FRAMES, LLAVA]],
    b"l": [LLAVA, CHAT, FRAMES],
    b"m": [ITEM],
    b"r": [RUN],
    b"h": [HF, SIGLIP],
}
SEEDS = [kind + json.dumps(held).encode() for kind, all_ in KINDS.items() for held in all_]
SEEDS += [b"cvideoid,contentUrl,name\n1,http://x/a.mp4,A ball\n"]


def target(data: bytes, folder: Path) -> None:
    """Sends an input to its door."""
    DOORS.get(data[:1], DOORS[b"l"])(data[1:], folder)


def grow(rng: random.Random) -> bytes:
    """A spoiled record, manifest or configuration."""
    kind = rng.choice(list(KINDS))
    held = common.spoil(rng, rng.choice(KINDS[kind]), rng.choice((0.01, 0.05, 0.2)))
    return kind + common.dump(rng, held)


if __name__ == "__main__":
    common.main(target, grow, SEEDS)
