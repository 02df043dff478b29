"""Fixtures: a small data set in the record format of moving_shapes, and a ChatML tokenizer."""

import io
import json

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from elva_jax.config import schema

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE with Qwen2's pre-tokenization and chat template."""
    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(
        [json.dumps(annotation(k)) for k in range(20)]
        + ["You are a helpful assistant. user system"] * 3,
        trainer,
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def annotation(k: int) -> dict:
    color = COLORS[k % 4]
    question = {
        "family": "colour",
        "question": f"What colour is shape {k}?",
        "answer": color,
        "options": list(COLORS),
    }
    count = {
        "family": "count",
        "question": "How many shapes are there?",
        "answer": str(k % 3),
        "options": ["0", "1", "2", "3"],
    }
    return {
        "objects": [],
        "named_objects": [f"{color} circle"],
        "captions": {
            "object": [
                {"question": f"Describe the {color} shape.", "answer": f"a circle, place {k}"}
            ],
            "caption": [
                {
                    "question": "Describe the video.",
                    "answer": f"A {color} circle moves. " * (1 + k % 3),
                }
            ],
        },
        "questions": [{**question, "letter": "ABCD"[k % 4]}, {**count, "letter": "ABCD"[k % 3]}],
    }


def clip(k: int, frames: int = 6, size: tuple[int, int] = (32, 48)) -> bytes:
    """A real mp4 whose gray levels encode the clip and the frame."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for f in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.full((*size, 3), (k * 5 + f * 20) % 250, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def picture(k: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((48, 32, 3), k * 5 % 250, np.uint8)).save(out, "PNG")
    return out.getvalue()


def record(k: int) -> dict:
    """Record k; every fourth one is a still image."""
    still = k % 4 == 3
    media = picture(k) if still else clip(k, size=(32, 48) if k % 2 else (32, 32))
    return {
        "id": f"clip{k:03d}",
        "media": media,
        "kind": "image" if still else "video",
        "annotation": json.dumps(annotation(k)).encode(),
    }


def broken(k: int) -> dict:
    """Bad record k; there are five kinds in turn."""
    good = record(0) | {"id": f"bad{k}"}
    without_questions = annotation(k) | {"captions": {}, "questions": []}
    unanswered = annotation(k) | {
        "captions": {},
        "questions": [{"family": "x", "question": "What?", "answer": " ", "options": []}],
    }
    return [
        good | {"media": b"not a video at all"},
        good | {"media": b""},
        good | {"annotation": b"{"},
        good | {"annotation": json.dumps(without_questions).encode()},
        good | {"annotation": json.dumps(unanswered).encode()},
    ][k % 5]


class MovingShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder with the record format of the real one and other contents."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (the interface of TFDS)
        tfds.core.BuilderConfig(name="small", version=VERSION, description="mostly readable")
    ]
    name = "moving_shapes"
    url_infos = {}  # noqa: RUF012 (nothing to download)

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "media": tfds.features.Scalar(np.object_),
            "kind": tfds.features.Text(),
            "annotation": tfds.features.Scalar(np.object_),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        good = [record(k) for k in range(24)]
        return {
            "train": enumerate(good),
            "other": enumerate(record(k) | {"id": f"other{k:03d}"} for k in range(30, 38)),
            "rotten": enumerate(good + [broken(k) for k in range(5)]),
        }

    def _generate_examples(self):
        raise AssertionError("splits are given as iterables")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The folder of moving_shapes/small.

    It has the splits train (24 good records), other (8) and rotten (train and 5 bad records).
    """
    folder = tmp_path_factory.mktemp("data")
    MovingShapes(config="small", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def config(data_dir):
    """The configuration of a run with a video stage and a teacher stage on the small data set."""
    c = schema.base()
    c.data_dir = str(data_dir)
    c.model.patch_size = 16
    c.teacher.image_size, c.teacher.patch_size, c.teacher.text_length = 32, 16, 24
    for name in ("video", "teacher"):
        stage = schema.stage()
        stage.batch_size = 4
        stage.data.mixture = {"a": schema.source("moving_shapes/small", "train")}
        stage.data.update(
            num_frames=3,
            longest_edge=48,
            seq_len=256,
            max_patches=40,
            max_frames=12,
            max_turns=3,
            system_prompt="Be brief.",
        )
        c.stages[name] = stage
    c.stages.teacher.kind = "teacher"
    c.curriculum = ("teacher", "video")
    return c
