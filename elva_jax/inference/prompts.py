"""Media and questions as rows of tokens: what a model reads before it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.config.merging_profiles import MergingProfile, check_profiles, parse_profile
from elva_jax.config.schema import Config
from elva_jax.config.serialize import freeze
from elva_jax.config.stages import stages_of_kind
from elva_jax.data import conversation, example
from elva_jax.data.decode_example import clip_settings
from elva_jax.data.prompt_format import FORMATS
from elva_jax.errors import ConfigError, VideoError
from elva_jax.inference import parts, stages
from elva_jax.inference.batching import GRID, ChooseLength, Rows, build_rows
from elva_jax.inference.long_context import check_letters
from elva_jax.inference.media import Media, Medium, Part, Prompt, as_list
from elva_jax.inference.request_settings import Profiles, open_profiles
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
        self.form = FORMATS[self.data.prompt_format]
        self.form.check(tokenizer)
        self.tokenizer = tokenizer
        self.model_config = dataclasses.replace(self.config.model, remat="none")
        self.merging_profiles: Profiles = {}

    def add_merging_profiles(self, *profiles: str | MergingProfile) -> None:
        """Names settings of merging, for `merging=NAME` of every method.

        Args:
          profiles: NAME=KEY=VALUE;KEY=VALUE…, as `--merging-profile` takes them: keys of the
            configuration's group `model` that begin with merge_.

        Raises:
          ConfigError: a name or a setting that cannot be or does not fit the model, two of one
            name, or more than 8.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> model.add_merging_profiles("half=merge_policies=pool;merge_ratios=0.5")
          >>> model.answer(video, "What moves?", merging="half", max_new_tokens=4)
          '...'
        """
        given = [parse_profile(each) if isinstance(each, str) else each for each in profiles]
        check_profiles(given, self.merging_profiles)
        self.merging_profiles = {**self.merging_profiles, **open_profiles(self.config, given)}

    def read_media(
        self,
        source: Source,
        *,
        frames: int | Hybrid | None = None,
        name: str | None = None,
        span: Span = WHOLE,
        seconds: float | None = None,
    ) -> Visual:
        """Reads one video or image as the model takes it.

        Args:
          source: a path, bytes, paths of images, or frames at hand.
          frames: how it is sampled; a number is without effect in MERV, which reads
            model.merv.num_frames frames of any video.
          name: what errors call the source.
          span: the seconds between which frames are sampled; see `read_video`.
          seconds: the longest time that reading may take; None: READ_SECONDS, or the run's
            data.time_limit if that is longer.

        Raises:
          VideoError: the source cannot be read, has no frames, or takes too long.
        """
        settings = clip_settings(self.data, self.model_config)
        if isinstance(frames, Hybrid):
            settings = dataclasses.replace(settings, fps=0.0, hybrid=frames)
        elif frames is not None:
            settings = dataclasses.replace(settings, fps=0.0, num_frames=frames)
        limit = seconds
        if limit is None:
            limit = self.data.time_limit and max(self.data.time_limit, READ_SECONDS)
        try:
            with stages.stage("read"):
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

    def prompt_parts(self, prompt: Prompt, media: Sequence[Visual]) -> list[Text | Clip]:
        """One question as the model reads it, up to where the answer begins.

        Raises:
          LayoutError: an empty question, or one that is far too long.
          DataError: places that do not match the media.
        """
        clips = [item.clip for item in media]
        system = self.data.system_prompt
        asked = self.question(prompt)
        return conversation.prompt_parts(asked, clips, self.tokenizer, system, self.form)

    def question(self, prompt: Prompt) -> str:
        """A prompt as a question of `data.conversation`.

        Raises:
          LayoutError: an empty question, or one that is far too long.
          DataError: a part that is neither text nor a medium, or text that is not Unicode.
        """
        asked = parts.question(prompt)
        check_letters(self.model_config, asked)
        return asked

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer, without the white space around it, and of its end.

        Raises:
          LayoutError: an answer that is far too long.
        """
        check_letters(self.model_config, answer)
        return self.form.answer_ids(answer, self.tokenizer)

    @staticmethod
    def place_media(text: str) -> list[Part]:
        r"""A prompt as parts, from a text whose `<video>` and `<image>` are the places of media.

        Only for text of your own: in that of others, `<video>` may be a word. `\<video>` is one.

        Example:
          >>> import elva_jax
          >>> elva_jax.ElvaModel.place_media("Where is <video>?")
          ['Where is', {'type': 'video'}, '?']
        """
        return parts.placed(text)

    def read_all(self, media: Media, frames: int | Hybrid | None = None) -> tuple[Visual, ...]:
        """Reads media as every method takes them."""
        return self._read(as_list(media), frames)

    def read_prompt(
        self, prompt: Prompt, media: Media, frames: int | Hybrid | None = None
    ) -> tuple[tuple[Visual, ...], Prompt]:
        """Reads the media of a prompt, in its order; the prompt has only their places left.

        Raises:
          DataError: parts that cannot be followed, or that do not match the media.
          VideoError: media that cannot be read.
        """
        found, bare = parts.take_media(prompt, as_list(media))
        return self._read(found, frames), bare

    def _read(
        self, media: Sequence[Medium], frames: int | Hybrid | None = None
    ) -> tuple[Visual, ...]:
        if frames is not None and not isinstance(frames, Hybrid):
            numbers.FRAMES.check("frames", frames)

        def read(item: Medium) -> Visual:
            if isinstance(item, Visual):
                return item
            if isinstance(item, example.Media):
                count = 1 if item.kind == "image" else item.frames or frames
                return self.read_media(item.source, frames=count, span=item.span)
            return self.read_media(item, frames=frames)

        return tuple(map(read, media))

    def rows(
        self,
        prompts: Sequence[Sequence[Text | Clip]],
        media: Sequence[Sequence[Visual]],
        lengths: ChooseLength = GRID,
        stretch: Sequence[int] = (),
    ) -> Rows:
        """A padded batch of the texts and clips of each row, whose media they are in order."""
        width = self.model_config.patch_values
        none = np.zeros((0, width), np.uint8)
        frame_patches = self.model_config.frame_patches
        with stages.stage("prefill"):
            patches = [np.concatenate([none, *(item.patches for item in row)]) for row in media]
            return build_rows(prompts, patches, width, lengths, frame_patches, stretch)


def elva_stage(config: Config, name: str | None = None) -> str:
    """The name of a stage that trains an ELVA; by default the last one of the curriculum.

    Raises:
      ConfigError: there is none, no stage of that name, one of another kind, or one that has
        learned captions without questions.
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
    found = name or names[-1]
    if config.stages[found].data.captions:
        raise ConfigError(
            f"stage '{found}' has learned captions without questions (data.captions), so it cannot"
            " answer; give a later stage"
        )
    return found
