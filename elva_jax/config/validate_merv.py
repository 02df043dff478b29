"""Refuses settings of MERV that are right by themselves and cannot work together."""

from __future__ import annotations

from elva_jax.config.check import nearest, require
from elva_jax.config.merv import RANDOM, clip_tokens, encoder_frames
from elva_jax.config.schema import Config, StageConfig, TeacherConfig
from elva_jax.config.stages import stages_of_kind
from elva_jax.config.teachers import same_tower
from elva_jax.config.validate_guidance import check_tower
from elva_jax.errors import ConfigError
from elva_jax.utils.patterns import Matcher


def check_merv(config: Config) -> None:
    """Refuses encoders that cannot be MERV's, and stages that cannot train it.

    Raises:
      ConfigError: naming the key.
    """
    model = config.model
    names = model.merv.encoders
    if model.patch_embed != "merv":
        require(
            not names,
            "model.merv.encoders",
            f"names {', '.join(names)}, which model.patch_embed = {model.patch_embed} does not"
            " have; set that to merv",
        )
        return
    require(
        names,
        "model.merv.encoders",
        "names no encoder; list entries of the group encoders, in order",
    )
    require(len(set(names)) == len(names), "model.merv.encoders", "names an encoder twice")
    for name in names:
        if name not in config.encoders:
            near = nearest(name, config.encoders)
            raise ConfigError(f"model.merv.encoders: no encoder '{name}' in encoders{near}")
        check_tower(config.encoders[name], f"encoders.{name}")
        encoder_frames(model.merv, config.encoders[name])
        _check_source(config, name, config.encoders[name])
    require(
        not (model.merge_layers and model.merv.fusion == "sequence"),
        "model.merge_layers",
        "cannot be combined with model.merv.fusion = sequence, where tokens of different encoders"
        " would merge; set it to ()",
    )
    for name in stages_of_kind(config, "elva"):
        _check_stage(config, config.stages[name], f"stages.{name}.")


def _check_source(config: Config, name: str, encoder: TeacherConfig) -> None:
    """An encoder without weights of its own, which no run and no stage has either."""
    if encoder.init_from or config.init_from:
        return
    trained = stages_of_kind(config, "teacher") and same_tower(encoder, config.teacher)
    require(
        trained,
        f"encoders.{name}.init_from",
        "names no weights, and no stage of kind teacher trains such a tower; set it, or to"
        f" '{RANDOM}' for random weights",
    )


def _check_stage(config: Config, stage: StageConfig, at: str) -> None:
    merv, data, loss = config.model.merv, stage.data, stage.loss
    tokens, frames = clip_tokens(merv), clip_tokens(merv) // merv.grid**2
    require(
        data.max_patches % tokens == 0,
        at + "data.max_patches",
        f"{data.max_patches} is not a multiple of the {tokens} visual tokens of a video in MERV",
    )
    require(
        data.max_frames >= frames,
        at + "data.max_frames",
        f"{data.max_frames} is less than the {frames} steps in time of a video in MERV",
    )
    require(
        not data.num_low_frames,
        at + "data.num_low_frames",
        "must be 0: MERV's encoders see frames of one size",
    )
    for term in ("tube", "contrastive"):
        require(
            getattr(loss, term) == 0,
            f"{at}loss.{term}",
            "must be 0: with model.patch_embed = merv there is no <FRAME>, and the encoders are in"
            " the model",
        )
    optimizer = stage.optimizer
    trained = optimizer.lora.also if optimizer.lora.rank else ()
    matcher = Matcher(f"{at}optimizer.freeze", ConfigError)
    for name in merv.encoders:
        path = f"elva/patch_embed/tower_{name}/"
        kept = optimizer.lora.rank and not any(matcher.search(p, path) for p in trained)
        require(
            kept or any(matcher.search(pattern, path) for pattern in optimizer.freeze),
            f"{at}optimizer.freeze",
            f"leaves encoder {name} to be trained, which no gradient reaches; add"
            " '^elva/patch_embed/tower_'",
        )
