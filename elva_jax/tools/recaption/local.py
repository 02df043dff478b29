"""The engine in this process: a Qwen2-VL of transformers, in PyTorch.

transformers' video processor needs torchvision and samples frames its own way. Frames that already
have their final size need only a few lines of NumPy, which serve images and videos alike.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from elva_jax.data.chat_tokens import token_ids
from elva_jax.errors import ConfigError
from elva_jax.tools.recaption.engine import Kind
from elva_jax.utils.chat_client import Failed, Reply
from elva_jax.utils.read import opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

PATCH, MERGE, TEMPORAL = 14, 2, 2
# CLIP's, as in Qwen2-VL's preprocessor_config.json.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Qwen2-VL's chat template, before and after one medium.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>",
    "<|vision_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
)


class Local:
    """A model and its tokenizer; threads prepare frames while one of them generates.

    Args:
      model: a `Qwen2VLForConditionalGeneration`.
      tokenizer: its tokenizer, with the tokens of `CHAT`.
      max_new_tokens: longest answer.
    """

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 1024,
    ):
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", dtype: str = "bfloat16", max_new_tokens: int = 1024
    ) -> Local:
        """Loads the model from a folder or a hub name.

        Raises:
          ConfigError: PyTorch is missing, or there is no Qwen2-VL of that name.
        """
        try:
            import torch
            from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
        except ImportError as error:
            raise ConfigError(
                f"captioning in this process needs PyTorch ({error}): install torch, "
                "or give --endpoint"
            ) from None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with opening(name, ConfigError, "--model=NAME must be a Qwen2-VL; or give --endpoint"):
            model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
                name, dtype=getattr(torch, dtype)
            )
            model = model.to(device)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return cls(model, tokenizer, max_new_tokens=max_new_tokens)

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """See `Engine.describe`; decodes greedily."""
        import torch

        patches_NxK, grid = patches(frames)
        config, device = self._model.config, self._model.device
        image = kind == "image"
        token, modality = (config.image_token_id, 1) if image else (config.video_token_id, 2)
        pixels = "pixel_values" if image else "pixel_values_videos"
        before, after = (
            list(token_ids(self._tokenizer, *pieces))
            for pieces in (CHAT[:1], (CHAT[1], prompt, CHAT[2]))
        )
        visual = len(patches_NxK) // MERGE**2
        types = [0] * len(before) + [modality] * visual + [0] * len(after)
        inputs = {
            "input_ids": torch.tensor([before + [token] * visual + after], device=device),
            "mm_token_type_ids": torch.tensor([types], dtype=torch.int32, device=device),
            pixels: torch.from_numpy(patches_NxK).to(device),
            f"{kind}_grid_thw": torch.tensor([grid], device=device),
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        try:
            with self._lock, torch.inference_mode():
                ids = self._model.generate(
                    **inputs,
                    max_new_tokens=self._max_new_tokens,
                    do_sample=False,
                    eos_token_id=end,
                    pad_token_id=end,
                )
        except torch.OutOfMemoryError:
            raise Failed(f"out of memory with {len(types)} tokens; lower --max-frames") from None
        new = ids[0, len(types) :].tolist()
        text = str(self._tokenizer.decode(new, skip_special_tokens=True))
        return Reply(
            text=text.strip(),
            finish="stop" if new[-1] == end else "length",
            prompt_tokens=len(types),
            new_tokens=len(new),
        )

    def stop(self) -> None:
        """See `Engine.stop`; this engine never waits."""


def patches(frames: list[np.ndarray]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cuts frames into the vision tower's patches, in the order of its 2x2 merging.

    Args:
      frames: uint8 [H, W, 3] of one shape, edges divisible by 28. Two frames make one patch in
        time; the last frame of an odd number is repeated.

    Returns:
      float32 [N, 3 * 2 * 14 * 14] normalized patches, and the grid (T, rows, columns) with
      T * rows * columns = N.
    """
    video = np.stack(frames + frames[-1:] * (len(frames) % TEMPORAL))
    video = (video.astype(np.float32) / 255 - MEAN) / STD
    count, rows, columns = len(video) // TEMPORAL, video.shape[1] // PATCH, video.shape[2] // PATCH
    blocks = video.reshape(
        count, TEMPORAL, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    #  axis  0      1             2          3      4          5           6      7    8
    order = (0, 2, 5, 3, 6, 8, 1, 4, 7)
    return blocks.transpose(order).reshape(count * rows * columns, -1), (count, rows, columns)
