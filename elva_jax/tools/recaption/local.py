"""The engine in this process: a Qwen2-VL of transformers, in PyTorch.

transformers' processor of videos needs torchvision and samples frames its own way; what it computes from frames that already have their
size is a few lines of NumPy, here for images and videos alike.
"""

from __future__ import annotations

import threading

import numpy as np

from elva_jax.errors import ConfigError
from elva_jax.tools.recaption.engine import Failed, Kind, Reply

PATCH, MERGE, TEMPORAL = 14, 2, 2
MEAN = np.array(
    [0.48145466, 0.4578275, 0.40821073], np.float32
)  # of CLIP, as in Qwen2-VL's preprocessor_config.json
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
    "<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n",
)  # Qwen2-VL's chat template around one medium


class Local:
    """A model and its tokenizer; the threads that call it prepare their frames while one of them generates.

    Args:
      model: a `Qwen2VLForConditionalGeneration`.
      tokenizer: its tokenizer, with the tokens of `CHAT`.
      max_new_tokens: longest answer.
    """

    def __init__(self, model, tokenizer, *, max_new_tokens: int = 1024):
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", dtype: str = "bfloat16", max_new_tokens: int = 1024
    ) -> Local:
        """Loads a folder or hub name.

        Raises:
          ConfigError: PyTorch is missing, or there is no Qwen2-VL of that name.
        """
        try:
            import torch
            from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
        except ImportError as error:
            raise ConfigError(
                f"the model in this process needs PyTorch ({error}): install torch, or give --endpoint"
            ) from None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = Qwen2VLForConditionalGeneration.from_pretrained(
                name, dtype=getattr(torch, dtype)
            ).to(device)
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--model={name}: cannot be loaded ({str(error).splitlines()[0]})"
            ) from None
        return cls(model, tokenizer, max_new_tokens=max_new_tokens)

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """See `Engine.describe`; the likeliest tokens."""
        import torch

        patches_NxK, grid = patches(frames)
        token, modality = (
            (self._model.config.image_token_id, 1)
            if kind == "image"
            else (self._model.config.video_token_id, 2)
        )
        before, after = (
            self._tokenizer(text, add_special_tokens=False).input_ids
            for text in (CHAT[0], CHAT[1].format(prompt=prompt))
        )
        visual = len(patches_NxK) // MERGE**2
        types = [0] * len(before) + [modality] * visual + [0] * len(after)
        device = self._model.device
        inputs = {
            "input_ids": torch.tensor([before + [token] * visual + after], device=device),
            "mm_token_type_ids": torch.tensor([types], dtype=torch.int32, device=device),
            "pixel_values" if kind == "image" else "pixel_values_videos": torch.from_numpy(
                patches_NxK
            ).to(device),
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
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        return Reply(text.strip(), "stop" if new[-1] == end else "length", len(types), len(new))

    def stop(self) -> None:
        """See `Engine.stop`: nothing is waited for."""


def patches(frames: list[np.ndarray]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """What the vision tower reads: patches in the order of its 2x2 merging, two frames each.

    Args:
      frames: uint8 [H, W, 3] of one shape, edges multiples of 28; of an odd number the last one is repeated.

    Returns:
      float32 [N, 3 * 2 * 14 * 14] normalised patches, and the grid (T, rows, columns) with T * rows * columns = N.
    """
    video = np.stack(frames + frames[-1:] * (len(frames) % TEMPORAL))
    video = (video.astype(np.float32) / 255 - MEAN) / STD
    count, rows, columns = len(video) // TEMPORAL, video.shape[1] // PATCH, video.shape[2] // PATCH
    blocks = video.reshape(
        count, TEMPORAL, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    #                      0      1         2              3      4      5                 6      7      8
    order = (0, 2, 5, 3, 6, 8, 1, 4, 7)
    return blocks.transpose(order).reshape(count * rows * columns, -1), (count, rows, columns)
