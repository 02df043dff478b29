"""From text with videos and images to input_ids, attention_mask, pixel_values and tube_ids."""

import copy
import json
import re

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .image_processing_elva import ElvaImagesKwargs, Visual, excerpt_of, flat_images, flat_videos

MARKER = re.compile(r"(<image>|<video>)")
FRAME, PATCH, LINE = "<FRAME>", "<PATCH>", "<LINE>"
# A character that Unicode will never assign. After the first character of a control token or
# marker, it keeps a message's text apart from the chat template until the ids are made.
GUARD = "\ufdd1"


class ElvaProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: ElvaImagesKwargs
    videos_kwargs: ElvaImagesKwargs
    _defaults = {"text_kwargs": {"padding": True, "add_special_tokens": False}}  # noqa: RUF012


class ElvaProcessor(ProcessorMixin):
    """Tokenizer and frame reader of an ELVA model.

    `<video>` and `<image>` mark the places of videos and images in the text; the chat template
    writes them. A frame of h x w patches becomes `<FRAME>`, then h rows of w `<PATCH>` and one
    `<LINE>`.

    In `apply_chat_template`, the messages say what is text and where media stand: special tokens
    and markers in their texts are text. A part of type video may have `start` and `end`, the
    seconds that are meant, and `nframes`, the number of frames to sample.
    """

    valid_processor_kwargs = ElvaProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.frame_id, self.patch_id, self.line_id = (
            tokenizer.convert_tokens_to_ids(token) for token in (FRAME, PATCH, LINE)
        )

        words = sorted([*tokenizer.get_added_vocab(), "<image>", "<video>"], key=len, reverse=True)
        self._words, self._letters = (
            re.compile(f"({'|'.join(map(re.escape, some)) or '(?!)'})")
            for some in ([w for w in words if len(w) > 1], [w for w in words if len(w) == 1])
        )
        self._bare = None  # the tokenizer without added tokens

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As in transformers; special tokens and markers in the texts of messages are text.

        A rendered text (`tokenize=False`) keeps them apart by U+FDD1 after their first character.
        """
        return super().apply_chat_template(self._guarded(conversation), *args, **kwargs)

    def _guarded(self, item):
        """Copies messages, with a guard in every control token and marker of their texts."""
        if isinstance(item, (list, tuple)):
            return [self._guarded(value) for value in item]
        if not isinstance(item, dict):
            return item
        item = copy.copy(item)
        if isinstance(kind := item.get("type"), str) and "role" not in item:
            if kind not in ("text", "image", "video"):
                raise ValueError(f"a part of type {kind!r} is neither text, image nor video")
            item = item if kind == "text" else excerpt_of(item)
        for name in ("content", "text", "role"):
            if name in item:
                text = isinstance(item[name], str)
                item[name] = self._guard(item[name]) if text else self._guarded(item[name])
        return item

    def _guard(self, text: str) -> str:
        text = self._letters.sub(r"\g<0>" + GUARD, text.replace(GUARD, GUARD * 2))
        while (found := self._words.sub(lambda m: m[0][0] + GUARD + m[0][1:], text)) != text:
            text = found
        return text

    def _ids(self, text: str) -> list[int]:
        """Ids of a rendered template; between control tokens, guarded texts are plain."""
        if GUARD not in text:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids = []
        # Every second part is a control token of the template.
        for number, part in enumerate(self._words.split(text)):
            guarded, part = GUARD in part, re.sub(f"{GUARD}({GUARD}?)", r"\1", part)
            if number % 2 or not guarded:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            else:
                ids += self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        """Ids of a text, by a copy of the tokenizer without added tokens."""
        if self._bare is None:
            state = json.loads(self.tokenizer.backend_tokenizer.to_str())
            state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
            self._bare = Tokenizer.from_str(json.dumps(state))
        return self._bare.encode(text, add_special_tokens=False).ids

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values", "tube_ids"]

    def __call__(self, images=None, text=None, videos=None, **kwargs) -> BatchFeature:
        """Prepares one text or a batch.

        Args:
          images: all images in the order of the `<image>` markers, nested in any way: paths, URLs,
            PIL images, or arrays uint8 [H, W, 3].
          text: a string, or a list of them.
          videos: all videos in the order of the `<video>` markers: paths, or lists or arrays of
            frames.
          **kwargs: `padding`, `padding_side`, `return_tensors` and other options of the tokenizer's
            `pad`; `num_frames`, `longest_edge` and other options of `ElvaImageProcessor`.

        Returns:
          BatchFeature of input_ids and attention_mask [B, S]; with visual tokens also pixel_values
          uint8 [B, N, P*P*3] and tube_ids [B, S].
        """
        if text is None:
            raise ValueError(
                "text is missing; write <video> or <image> where a medium belongs, or use"
                " apply_chat_template"
            )
        options = self._merge_kwargs(
            ElvaProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        texts = [text] if isinstance(text, str) else list(text)
        queues = {
            "<image>": [
                self.image_processor.image(image, **options["images_kwargs"])
                for image in flat_images(images)
            ],
            "<video>": [
                self.image_processor.video(video, **options["videos_kwargs"])
                for video in flat_videos(videos)
            ],
        }
        for marker, queue in queues.items():
            found = sum(sample.count(marker) for sample in texts)
            if found != len(queue):
                raise ValueError(
                    f"{found} {marker} markers in the text for {len(queue)} {marker.strip('<>')}s"
                )
        rows = [self._row(sample, queues) for sample in texts]
        return self._batch(rows, options["text_kwargs"], single=isinstance(text, str))

    def _row(
        self, text: str, queues: dict[str, list[Visual]]
    ) -> tuple[list[int], list[int], list[np.ndarray]]:
        """Ids, tubes and patches of one text, whose media are taken from the queues."""
        ids, tubes, patches, next_tube = [], [], [], 0
        for piece in MARKER.split(text):
            if piece not in queues:
                new = self._ids(piece)
                ids, tubes = ids + new, tubes + [-1] * len(new)
                continue
            visual = queues[piece].pop(0)
            bases: dict[tuple[int, int], int] = {}
            for rows, columns in visual.grids:
                if (rows, columns) not in bases:
                    bases[rows, columns] = next_tube
                    next_tube += rows * (columns + 1)
                cells = np.arange(rows * columns).reshape(rows, columns)
                lines = rows * columns + np.arange(rows)[:, None]
                ids += [self.frame_id, *([self.patch_id] * columns + [self.line_id]) * rows]
                tubes += [
                    -1,
                    *(bases[rows, columns] + np.concatenate([cells, lines], axis=1))
                    .ravel()
                    .tolist(),
                ]
            patches.append(visual.patches)
        return ids, tubes, patches

    def _batch(self, rows, options: dict, single: bool) -> BatchFeature:
        known = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
        pad = {name: options[name] for name in known if options.get(name) is not None}
        tensors = options.get("return_tensors")
        data = self.tokenizer.pad(
            {"input_ids": [ids for ids, _, _ in rows]}, return_attention_mask=True, **pad
        )
        if any(patches for _, _, patches in rows):
            side = pad.get("padding_side") or self.tokenizer.padding_side
            data["tube_ids"] = [
                [-1] * (len(ids) - len(tubes)) + tubes
                if side == "left"
                else tubes + [-1] * (len(ids) - len(tubes))
                for ids, (_, tubes, _) in zip(data["input_ids"], rows, strict=True)
            ]
            counts = [sum(map(len, patches)) for _, _, patches in rows]
            width = self.image_processor.patch_size**2 * 3
            pixels = np.zeros((len(rows), max(counts), width), np.uint8)
            for out, count, (_, _, patches) in zip(pixels, counts, rows, strict=True):
                out[:count] = np.concatenate(patches) if patches else np.zeros((0, width), np.uint8)
            data["pixel_values"] = torch.from_numpy(pixels)
        if single and tensors is None:
            data = {
                name: values[0] if isinstance(values, list) else values
                for name, values in data.items()
            }
        return BatchFeature(dict(data), tensor_type=tensors)


__all__ = ["ElvaProcessor"]
