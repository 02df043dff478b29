"""Media and questions as rows of tokens: what a model reads before it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config
from elva_jax.config.serialize import freeze
from elva_jax.config.stages import stages_of_kind
from elva_jax.data import conversation
from elva_jax.data.decode_example import clip_settings
from elva_jax.errors import ConfigError, VideoError
from elva_jax.inference.batching import GRID, ChooseLength, Rows, build_rows
from elva_jax.inference.media import Media, as_list, check_question
from elva_jax.utils import numbers
from elva_jax.utils.failures import repr_path
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit
from elva_jax.video.clip import Source, Visual, read_clip
from elva_jax.video.hybrid import Hybrid, complete
from elva_jax.video.layout import Clip, Text
from elva_jax.video.read import WHOLE, Span

READ_SECONDS = 600.0  # for one video; a decoder may hang on a damaged file


class PromptReader:
    """Reads media and questions as one stage of a run does; the base of `ElvaModel`."""

    def __init__(
        self,
        config: ConfigDict | Config,
        tokenizer: PreTrainedTokenizerBase,
        stage: str | None = None,
    ) -> None:
        self.config = freeze(config)
        self.stage = elva_stage(self.config, stage)
        self.data = self.config.stages[self.stage].data
        self.tokenizer = tokenizer
        self.model_config = dataclasses.replace(self.config.model, remat="none")

    def read_media(
        self,
        source: Source,
        *,
        frames: int | Hybrid | None = None,
        name: str | None = None,
        span: Span = WHOLE,
    ) -> Visual:
        """Reads one video or image as the model takes it.

        Args:
          source: a path, bytes, paths of images, or frames at hand.
          frames: how it is sampled.
          name: what errors call the source.
          span: the seconds between which frames are sampled; see `read_video`.

        Raises:
          VideoError: the source cannot be read, has no frames, or takes longer than READ_SECONDS
            and the run's data.time_limit.
        """
        tower = self.model_config.tower
        settings = clip_settings(
            self.data,
            patch_size=self.model_config.patch_size,
            square=tower.image_size if tower else 0,
        )
        if isinstance(frames, Hybrid):
            settings = dataclasses.replace(settings, fps=0.0, hybrid=frames)
        elif frames is not None:
            settings = dataclasses.replace(settings, fps=0.0, num_frames=frames)
        limit = self.data.time_limit and max(self.data.time_limit, READ_SECONDS)
        try:
            return run_with_time_limit(
                limit, lambda: read_clip(source, settings, name=name, span=span)
            )
        except TimeLimitExceeded as error:
            path = repr_path(source) if isinstance(source, (str, Path)) else "<media>"
            raise VideoError(
                name or path,
                f"{error} to read; copy it to a faster disk, convert it to another format, or raise"
                " data.time_limit in the config.json of the run",
            ) from None

    def hybrid(self, **settings: Any) -> Hybrid | None:
        """The `Hybrid` of some of its fields, the others by the data settings; None without any.

        Raises:
          ConfigError: settings that cannot be.
        """
        patch_size = self.model_config.patch_size
        return complete(self.data.longest_edge, patch_size, **settings)

    def prompt_parts(self, prompt: str, media: Sequence[Visual]) -> list[Text | Clip]:
        """One question as the model reads it, up to where the answer begins.

        Raises:
          LayoutError: an empty question.
          DataError: markers that do not match the media.
        """
        clips = [item.clip for item in media]
        check_question(prompt)
        system = self.data.system_prompt
        return conversation.prompt_parts(prompt, clips, self.tokenizer, system)

    def read_all(self, media: Media, frames: int | Hybrid | None = None) -> tuple[Visual, ...]:
        """Reads media as every method takes them."""
        if frames is not None and not isinstance(frames, Hybrid):
            numbers.FRAMES.check("frames", frames)
        return tuple(
            item if isinstance(item, Visual) else self.read_media(item, frames=frames)
            for item in as_list(media)
        )

    def rows(
        self,
        parts: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        lengths: ChooseLength = GRID,
    ) -> Rows:
        """A padded batch of the texts and clips of each row, whose media they are in order."""
        width = self.model_config.patch_size**2 * 3
        none = np.zeros((0, width), np.uint8)
        patches = [np.concatenate([none, *(item.patches for item in row)]) for row in media]
        return build_rows(parts, patches, width, lengths, self.model_config.frame_patches)


def elva_stage(config: Config, name: str | None = None) -> str:
    """The name of a stage that trains an ELVA; by default the last one of the curriculum.

    Raises:
      ConfigError: there is none, no stage of that name, or one of another kind.
    """
    if name is not None and name not in config.stages:
        raise ConfigError(f"no stage '{name}'; the run has {', '.join(config.stages)}")
    if name is not None and not stages_of_kind(config, "elva", among=(name,)):
        raise ConfigError(
            f"stage '{name}' trains a {config.stages[name].kind}, which cannot answer;"
            " give an ELVA stage"
        )
    names = stages_of_kind(config, "elva")
    if name is None and not names:
        raise ConfigError("curriculum: no stage of kind 'elva', so there is no model that answers")
    return name or names[-1]
