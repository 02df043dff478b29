"""A Hugging Face folder, run by PyTorch, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, SiglipVisionModel

from elva_jax.errors import ConvertError
from elva_jax.evaluation.side import Answered, TextModel, square_pixels
from elva_jax.inference.long_context import FACTORS
from elva_jax.utils.read import opening


class TorchSide:
    """See `Side`. Its folder may run code: `open_side` has checked its Python files."""

    def __init__(self, path: Path, config: dict[str, Any], kind: str):
        self.path, self.config, self.kind = path, config, kind
        self.vocab_size = config.get("vocab_size", 0)

    def _model(self) -> Any:
        with opening(self.path, ConvertError):
            return AutoModelForCausalLM.from_pretrained(
                self.path, dtype=torch.float32, trust_remote_code=True
            ).eval()

    def ask(self, video: Any, prompt: str, new_tokens: int, *, merging: bool) -> Answered:
        """Runs the whole prompt at once, and answers with a cache."""
        with opening(self.path, ConvertError):
            processor = AutoProcessor.from_pretrained(self.path, trust_remote_code=True)
        model = self._model()
        source = str(video) if isinstance(video, (str, Path)) else list(video)
        content = [{"type": "video", "video": source}, {"type": "text", "text": prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = inputs["input_ids"][0].tolist()
        dynamic = (self.config.get("rope_parameters") or {}).get("rope_type") == "dynamic"
        most = self.config["max_position_embeddings"] * (1 if dynamic else FACTORS[-1])
        longest = most - len(ids) + 1  # where ours stops too
        with torch.no_grad():
            out = model(**inputs, merging=merging, use_cache=False)
            model.generation_config.eos_token_id = None
            tokens = model.generate(
                **inputs, merging=merging, max_new_tokens=min(new_tokens, longest), do_sample=False
            )
        visual = {self.config[f"{name}_token_id"] for name in ("frame", "patch", "line")}
        return Answered(
            ids=tuple(token for token in ids if token not in visual),
            index=out.token_index[0].numpy(),
            logits=out.logits[0].numpy(),
            tokens=tuple(tokens[0, len(ids) :].tolist()),
            length=len(ids),
            patches=inputs["pixel_values"][0].numpy(),
        )

    def text_model(self) -> TextModel:
        """The language model alone."""
        with opening(self.path, ConvertError):
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=True)
        model = self._model()

        def logits(ids: Sequence[int]) -> np.ndarray:
            with torch.no_grad():
                return model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        return TextModel(encode=encode, logits=logits)

    def features(self, video: Any) -> dict[str, np.ndarray]:
        """A vision tower's features."""
        with opening(self.path, ConvertError):
            model = SiglipVisionModel.from_pretrained(self.path, dtype=torch.float32).eval()
        pixels = torch.from_numpy(square_pixels(video, model.config.image_size)).permute(0, 3, 1, 2)
        with torch.no_grad():
            out = model(pixel_values=pixels, output_hidden_states=True)
        return {"penultimate": out.hidden_states[-2].numpy(), "last": out.last_hidden_state.numpy()}
