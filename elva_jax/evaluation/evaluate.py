"""Accuracy of a model on a split of questions about videos, with baselines beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from elva_jax.checkpoints.restore import Run
from elva_jax.config import schema
from elva_jax.errors import VideoError
from elva_jax.evaluation.measurements import BOOTSTRAP_SEED, Measurements
from elva_jax.evaluation.models import lockstep_for, open_elva
from elva_jax.evaluation.questions import Video, read_split
from elva_jax.evaluation.result import EvalConfig, EvalResult
from elva_jax.evaluation.runner.identity import digest
from elva_jax.inference.batches.reading import same_media
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.params import parameter_count
from elva_jax.ops.attention import choose_implementation
from elva_jax.version import __version__
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid

DECODERS = 2  # threads that read videos ahead of the model


def evaluate(
    model: str | Path | Run | ElvaModel,
    config: EvalConfig | None = None,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Measures a model on questions with an open answer and options.

    Every question counts, whether its answer could be used or not. Videos that cannot be read are
    named, and their questions are in no score.

    Args:
      model: path of a run, a saved step or an exported folder; or the model itself.
      config: what to ask and measure; the default asks the whole test split of moving_shapes/easy.
      mesh: devices over which the weights and every batch are split; None: the first one. Where
        they are those of several processes, all of these call this with the same arguments.
      progress: called with (videos done, videos in all) after each batch.

    Raises:
      ElvaError: no such checkpoint, data set or split, no questions with options in it, or no video
        that can be read.

    Example:
      On a data set that `elva data build moving_shapes/easy` wrote:

      >>> import elva_jax
      >>> from elva_jax import testing
      >>> config = elva_jax.EvalConfig(data_dir=".data", limit=1, baselines=False)
      >>> result = elva_jax.evaluate(testing.tiny_model(), config)
      >>> 0.0 <= result.macro["likelihood"].accuracy <= 1.0
      True
    """
    start, config = time.monotonic(), config or EvalConfig()
    with lockstep_for(model, mesh).together():
        elva, origin = open_elva(model, mesh, config.weights, config.prefill_chunk)
        data_dir = Path(config.data_dir or elva.config.data_dir)
        videos = read_split(config.dataset, config.split, data_dir, config.limit)
        hybrid = elva.hybrid(**config.hybrid)
        measured = Measurements(
            elva,
            config,
            rows=min(config.batch_size, len(videos)),
            most_questions=max(len(video.questions) for video in videos),
        )
        done = 0
        for batch, visuals in _read_ahead(elva, videos, config, hybrid):
            measured.add(batch, visuals)
            done += len(batch)
            if progress:
                progress(done, len(videos))
    families, macro = measured.scores()
    built = elva.model_config
    attention = choose_implementation(built.head_dim, built.dtype, built.attention)
    parameters = parameter_count(elva.engine.weights)
    return EvalResult(
        model={"stage": elva.stage, "parameters": parameters, "dtype": built.dtype, **origin},
        families=families,
        macro=macro,
        answers=measured.answer_counts(),
        tokens=measured.token_counts(),
        versions={
            "elva_jax": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        },
        attention=str(attention),
        config=schema.to_config_dict(elva.config).to_dict(),
        data={
            "name": config.dataset,
            "split": config.split,
            "videos": len(videos),
            "questions": len(measured.predictions),
            "unreadable": measured.unreadable,
            "prompts_hash": _prompts_hash(videos),
            "data_dir": str(data_dir),
        },
        settings=_settings(elva, config, hybrid),
        seconds=time.monotonic() - start,
        predictions=tuple(measured.predictions),
    )


def _prompts_hash(videos: Sequence[Video]) -> str:
    """A hash of all questions and options, and so of the version of their wording."""
    return digest({v.key: [(item.text, item.options) for item in v.questions] for v in videos})


def _settings(elva: ElvaModel, config: EvalConfig, hybrid: Hybrid | None) -> dict[str, Any]:
    frames = config.num_frames or elva.data.num_frames
    return {
        "merging": config.merging,
        "num_frames": hybrid.frames if hybrid else frames,
        "hybrid": dataclasses.asdict(hybrid) if hybrid else None,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
        "limit": config.limit,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "longest_edge": elva.data.longest_edge,
        "patch_size": elva.config.model.patch_size,
        "training_seed": elva.config.seed,
        # Without the key where it says nothing, as in records of older versions.
        **({"weights": elva.weights} if elva.weights else {}),
    }


def _read_ahead(
    elva: ElvaModel, videos: Sequence[Video], config: EvalConfig, hybrid: Hybrid | None
) -> Iterator[tuple[Sequence[Video], list[Visual | VideoError]]]:
    """Batches of videos with their frames; the next batch is read while the model works."""

    def read(video: Video) -> Visual | VideoError:
        try:
            frames = hybrid or config.num_frames
            return elva.read_media(video.source, frames=frames, name=video.key)
        except VideoError as error:
            return error

    size = config.batch_size
    batches = [videos[i : i + size] for i in range(0, len(videos), size)]
    with ThreadPoolExecutor(DECODERS) as pool:
        pending: list[Future[Visual | VideoError]] = [pool.submit(read, v) for v in batches[0]]
        for batch, following in zip(batches, [*batches[1:], ()], strict=True):
            current, pending = pending, [pool.submit(read, video) for video in following]
            found = [future.result() for future in current]
            yield batch, [_same(elva, *pair) for pair in zip(batch, found, strict=True)]


def _same(elva: ElvaModel, video: Video, found: Visual | VideoError) -> Visual | VideoError:
    """The frames of a video, once every process of the model's mesh has the same."""
    media = found.reason if isinstance(found, VideoError) else (found,)
    checked = same_media(elva.engine.placement.lockstep, video.key, media)
    return VideoError(video.key, checked) if isinstance(checked, str) else checked[0]
