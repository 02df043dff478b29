"""The two kinds of sides that `elva convert check` compares: ours in JAX, and Hugging Face folders in PyTorch; all in float32."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from elva_jax.checkpoints.restore import SavedRun, open_run
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.hf.export import REMOTE_CODE

HF_KINDS = {
    "elva": "elva",
    "qwen2": "text",
    "llama": "text",
    "siglip": "vision",
    "siglip_vision_model": "vision",
}
BLOCK = 64  # bare text is padded to multiples of it, so that few lengths are compiled


class Answered(NamedTuple):
    """What one side makes of a prompt of S tokens, C of which are left behind the last merging layer."""

    ids: tuple[int, ...]  # text tokens of the prompt
    index: np.ndarray  # [C] the surviving tokens
    logits: np.ndarray  # [C, V] float32
    tokens: tuple[int, ...]  # greedy answer; no token ends it
    length: int  # S


class Text(NamedTuple):
    """A language model that reads bare text."""

    encode: Any  # str -> ids
    logits: Any  # ids [S] -> float32 [S, V]


def describe(path: str | Path, trust_remote_code: bool = False) -> JaxSide | TorchSide:
    """The side that a path means; nothing is loaded yet.

    Raises:
      ConvertError: a folder of an unknown kind, or one with Python files of its own.
    """
    path = Path(path)
    if not is_hf_folder(path):
        try:
            return JaxSide(open_run(path))
        except CheckpointError:
            return JaxSide(open_run(path, kind="teacher"))
    config = json.loads((path / "config.json").read_text())
    kind = HF_KINDS.get(config["model_type"])
    if kind is None:
        raise ConvertError(
            f"{path}: a model of type {config['model_type']} cannot be checked; known are {', '.join(HF_KINDS)}"
        )
    foreign = [file.name for file in path.glob("*.py") if not _is_ours(file)]
    if foreign and not trust_remote_code:
        raise ConvertError(
            f"{path}: would run {', '.join(foreign)}, not written by this version of elva_jax; --trust-remote-code allows it"
        )
    return TorchSide(path, config, kind)


def is_hf_folder(path: Path) -> bool:
    """Whether a path is a Hugging Face folder and not a run, which has a config.json too."""
    file = path / "config.json"
    return file.is_file() and "model_type" in json.loads(file.read_text())


def _is_ours(file: Path) -> bool:
    ours = REMOTE_CODE / file.name
    return ours.is_file() and ours.read_bytes() == file.read_bytes()


class JaxSide:
    """A run or converted checkpoint."""

    def __init__(self, run: SavedRun):
        self.run = run
        self.kind = "vision" if run.config.stages[run.stage].kind == "teacher" else "elva"
        self.vocabulary = run.config.model.vocab_size

    def _load(self):
        run = self.run.load_float32()
        run.config.model.dtype = "float32"
        return run

    def ask(self, video: Any, prompt: str, merging: bool, new_tokens: int) -> Answered:
        """One question about one video: the whole prompt at once, and a greedy answer with a cache."""
        from elva_jax.inference.batching import text_tokens
        from elva_jax.inference.model import ElvaModel
        from elva_jax.models.elva import Elva
        from elva_jax.video.layout import Kind, build_layout

        run = self._load()
        generator = ElvaModel.from_run(run)
        generator.engine.end_ids = (-1,)
        visual = generator.read_media(video)
        prefilled = generator.prefill([[visual]], merging=merging, prompts=[prompt])
        answer = prefilled.generate([[prompt]], new_tokens)[0][0]
        parts = generator.prompt_parts(prompt, [visual])
        layout = build_layout(parts)

        @jax.jit
        def forward(params, patches, layout):
            out = Elva(generator.model_config).apply(
                {"params": params}, patches, layout, merging=merging
            )
            return Elva(generator.model_config).apply(
                {"params": params}, out.hidden, method="head"
            ), out.layout

        logits, left = forward(
            run.params["elva"],
            visual.patches[None],
            jax.tree.map(lambda field: field[None], layout),
        )
        used = np.asarray(left.kind[0] != Kind.PAD)
        ids = tuple(text_tokens(parts))
        # In a single example, the position of a token is its place.
        return Answered(
            ids,
            np.asarray(left.position[0])[used],
            np.asarray(logits[0])[used],
            answer.tokens,
            layout.length,
        )

    @contextlib.contextmanager
    def reader(self) -> Iterator[Text]:
        """The language model alone."""
        from elva_jax.data.tokenizer import load
        from elva_jax.models.build import config_from_dict
        from elva_jax.models.qwen2 import Qwen2

        run = self._load()
        tokenizer = load(run.tokenizer_dir)
        model = config_from_dict(run.config.model, run.config.teacher)
        decoder = Qwen2(dataclasses.replace(model, dtype="float32", remat="none", attention="auto"))
        apply = jax.jit(lambda params, *inputs: decoder.apply({"params": params}, *inputs))
        params = run.params["elva"]["decoder"]

        def logits(ids: Sequence[int]) -> np.ndarray:
            length = -(-len(ids) // BLOCK) * BLOCK
            token, segment = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
            token[0, : len(ids)], segment[0, : len(ids)] = ids, 1
            return np.asarray(
                apply(params, token, np.arange(length, dtype=np.int32)[None], segment)[
                    0, : len(ids)
                ]
            )

        yield Text(lambda text: tokenizer.encode(text, add_special_tokens=False), logits)

    def features(self, video: Any) -> dict[str, np.ndarray]:
        """A teacher's features of frames."""
        from elva_jax.models.build import vision_tower

        run = self._load()
        tower = vision_tower(run.config)
        pixels = square_pixels(video, run.config.teacher.image_size)
        out = jax.jit(tower.apply)({"params": run.params["vision"]}, pixels)
        return {"penultimate": np.asarray(out.penultimate), "last": np.asarray(out.last)}


class TorchSide:
    """A Hugging Face folder."""

    def __init__(self, path: Path, config: dict[str, Any], kind: str):
        self.path, self.config, self.kind = path, config, kind
        self.vocabulary = config.get("vocab_size", 0)

    def _model(self):
        import torch
        from transformers import AutoModelForCausalLM

        # What may run was settled in `describe`.
        return AutoModelForCausalLM.from_pretrained(
            self.path, dtype=torch.float32, trust_remote_code=True
        ).eval()

    def ask(self, video: Any, prompt: str, merging: bool, new_tokens: int) -> Answered:
        """As `JaxSide.ask`."""
        import torch
        from transformers import AutoProcessor

        processor, model = (
            AutoProcessor.from_pretrained(self.path, trust_remote_code=True),
            self._model(),
        )
        source = str(video) if isinstance(video, (str, Path)) else list(video)
        content = [{"type": "video", "video": source}, {"type": "text", "text": prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        room = (
            self.config["max_position_embeddings"] - inputs["input_ids"].shape[1]
        )  # where ours stops too
        with torch.no_grad():
            out = model(**inputs, merging=merging, use_cache=False)
            model.generation_config.eos_token_id = None
            tokens = model.generate(
                **inputs, merging=merging, max_new_tokens=min(new_tokens, room), do_sample=False
            )
        ids = inputs["input_ids"][0].tolist()
        visual = {self.config[f"{name}_token_id"] for name in ("frame", "patch", "line")}
        text = tuple(token for token in ids if token not in visual)
        return Answered(
            text,
            out.token_index[0].numpy(),
            out.logits[0].numpy(),
            tuple(tokens[0, len(ids) :].tolist()),
            len(ids),
        )

    @contextlib.contextmanager
    def reader(self) -> Iterator[Text]:
        """The language model alone."""
        import torch
        from transformers import AutoTokenizer

        tokenizer, model = (
            AutoTokenizer.from_pretrained(self.path, trust_remote_code=True),
            self._model(),
        )

        def logits(ids: Sequence[int]) -> np.ndarray:
            with torch.no_grad():
                return model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()

        yield Text(lambda text: tokenizer.encode(text, add_special_tokens=False), logits)

    def features(self, video: Any) -> dict[str, np.ndarray]:
        """A vision tower's features of frames."""
        import torch
        from transformers import SiglipVisionModel

        model = SiglipVisionModel.from_pretrained(self.path, dtype=torch.float32).eval()
        pixels = torch.from_numpy(square_pixels(video, model.config.image_size)).permute(0, 3, 1, 2)
        with torch.no_grad():
            out = model(pixel_values=pixels, output_hidden_states=True)
        return {"penultimate": out.hidden_states[-2].numpy(), "last": out.last_hidden_state.numpy()}


def square_pixels(video: Any, size: int, count: int = 4) -> np.ndarray:
    """float32 [n, size, size, 3] in [-1, 1] of a few frames of a video, squashed to a square."""
    if isinstance(video, (str, Path)):
        from elva_jax.video.read import read_frames

        video = read_frames(video, num_frames=count).pixels
    frames = [
        np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
        for frame in list(video)[:count]
    ]
    return (np.stack(frames) / 127.5 - 1.0).astype(np.float32)
