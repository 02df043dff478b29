"""Tests of every key of the schema: its default, invalid values of every kind, and its page."""

import copy
import dataclasses
import difflib
import json
import math
import re
import typing
from pathlib import Path

import pytest

from elva_jax.config import describe, schema
from elva_jax.config.check import check
from elva_jax.config.keys import key_types, keys
from elva_jax.config.load import load, resolve
from elva_jax.config.schema import Config, ModelConfig
from elva_jax.config.serialize import config_from_dict, config_to_dict, freeze
from elva_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
WRONG = (None, "x", 1, 1.5, True, (), ("x",), (1,), (1.5,), (True,), [1], {"x": 1}, object())


def whole():
    """A valid configuration with a stage and a source."""
    config = load(str(ROOT / "configs/tiny.py"), ["--config.curriculum=('teacher', 'image')"])
    with config.unlocked():
        held_out = schema.source("moving_shapes/easy", "validation")
        config.stages.image.eval.mixture.images = held_out
        config.teachers.images = schema.tower()
        config.teachers.images.init_from = "towers/images"
        config.encoders.images = schema.tower()
    return config


def all_keys():
    """(path in a configuration, class of its group, field, type) of every key."""
    for prefix, cls in describe.walk():
        real = prefix.replace("stages.NAME.", "stages.image.").replace("NAME", "images")
        for name, field in keys(cls).items():
            if "limits" in field.metadata:
                yield f"{real}{name}", cls, field, key_types(cls)[name]


KEYS = {path: found for path, *found in all_keys()}
WHOLE = whole().to_dict()


def group_of(path):
    """A copy of the group that contains a key."""
    group = copy.deepcopy(WHOLE)
    for name in path.split(".")[:-1]:
        group = group[name]
    return group


def refused(path, value):
    """The error message for a key with this value; a ConfigDict would reject the assignment."""
    *_, last = path.split(".")
    with pytest.raises(ConfigError) as error:
        check(KEYS[path][0], group_of(path) | {last: value}, path.removesuffix(last))
    message = str(error.value)
    assert message.startswith(f"{path}: "), message
    assert "\n" not in message
    return message


def test_every_key_has_a_description():
    assert len(KEYS) >= 177
    assert all(field.metadata["meaning"] for _, field, _ in KEYS.values())
    freeze(copy.deepcopy(WHOLE))


@pytest.mark.parametrize("path", KEYS)
def test_wrong_types_are_refused(path):
    kind = KEYS[path][2]
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    literal = typing.get_origin(inner) is typing.Literal
    plain = type(typing.get_args(inner)[0]) if literal else inner

    def fits(value):
        return type(value) is plain or (plain is float and type(value) is int)

    for value in WRONG:
        if inner is not kind and type(value) is tuple:
            if not all(map(fits, value)):
                assert f"expected {plain.__name__}, got" in refused(path, value)
        elif inner is not kind:
            assert "expected tuple, got" in refused(path, value)
        elif not fits(value):
            assert f"expected {plain.__name__}, got" in refused(path, value)


@pytest.mark.parametrize("path", KEYS)
def test_wrong_values_are_refused(path):
    _, field, kind = KEYS[path]
    as_tuple = typing.get_origin(kind) is tuple
    inner = typing.get_args(kind)[0] if as_tuple else kind
    wrong, limits = [], field.metadata["limits"]
    if inner is float:
        wrong += [math.nan, math.inf, -math.inf]
    for name, step in (("minimum", -1), ("maximum", 1), ("above", 0), ("below", 0)):
        if name in limits:
            wrong += [inner(limits[name] + step)]
    if typing.get_origin(inner) is typing.Literal:
        allowed = typing.get_args(inner)
        wrong += [allowed[0] + "s" if isinstance(allowed[0], str) else max(allowed) + 1]
    for value in wrong:
        message = refused(path, (value,) if as_tuple else value)
        if typing.get_origin(inner) is typing.Literal and isinstance(value, str):
            (near,) = difflib.get_close_matches(value, allowed, 1, 0)
            assert message.endswith(f"; did you mean {near}?")


@pytest.mark.parametrize("path", KEYS)
def test_misspelled_keys_are_refused(path):
    group, (*_, last) = group_of(path), path.split(".")
    group[f"{last}x"] = group.pop(last)
    with pytest.raises(ConfigError) as error:
        check(KEYS[path][0], group, path.removesuffix(last))
    assert str(error.value) == f"{path}x: no such key; did you mean {last}?"
    group[last] = group.pop(f"{last}x")
    check(KEYS[path][0], group, path.removesuffix(last))
    del group[last]
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: missing"):
        check(KEYS[path][0], group, path.removesuffix(last))


@pytest.mark.parametrize("path", ["model", "stages", "stages.image", "stages.image.data.mixture"])
@pytest.mark.parametrize("value", [None, 3, "x", ("x",)])
def test_a_value_in_place_of_a_group_is_refused(path, value):
    config = group = copy.deepcopy(WHOLE)
    *groups, last = path.split(".")
    for name in groups:
        group = group[name]
    group[last] = value
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: expected a group of settings"):
        freeze(config)


def test_typed_configuration_equals_that_of_the_user():
    config = whole()
    typed = resolve(config)
    assert schema.to_config_dict(typed).to_dict() == config.to_dict()
    assert resolve(typed) == typed
    assert typed.model.hidden_size == config.model.hidden_size == 96
    assert isinstance(typed.stages["image"].data.mixture["images"].weight, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.model.hidden_size = 1
    wrong = dataclasses.replace(typed, model=dataclasses.replace(typed.model, num_heads=math.nan))
    with pytest.raises(ConfigError, match=r"model\.num_heads: expected int, got float nan"):
        resolve(wrong)
    assert hash(ModelConfig()) == hash(ModelConfig())


def test_json_round_trip():
    config = resolve(whole())
    text = json.dumps(config_to_dict(config))
    assert config_from_dict(json.loads(text)) == config
    assert config_to_dict(whole()) == config_to_dict(config)


def test_saved_unknown_keys_are_refused_and_missing_ones_have_defaults():
    saved = config_to_dict(whole())
    del saved["stages"]["image"]["optimizer"]["lora"], saved["log"]["wandb"], saved["mesh"]["zero"]
    assert config_from_dict(saved) == resolve(whole())
    saved["stages"]["image"]["data"]["mixture"]["images"]["wait"] = 1.0
    with pytest.raises(
        ConfigError,
        match=r"^stages\.image\.data\.mixture\.images\.wait: no such key; did you mean weight\?$",
    ):
        config_from_dict(saved)
    assert config_from_dict({}) == Config()


def test_only_the_encoder_based_model_has_a_tower():
    assert Config().model.tower is None
    encoder = Config(model=ModelConfig(patch_embed="encoder"))
    assert encoder.model.tower == encoder.teacher
    assert encoder.model.frame_patches == 27**2
    free = dataclasses.replace(
        encoder, model=dataclasses.replace(encoder.model, patch_embed="video")
    )
    assert free.model == ModelConfig()


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/config.md").read_text() == describe.markdown(), (
        "run: elva config --markdown > docs/config.md"
    )


def test_every_key_is_printed_with_its_origin(capsys, config_dir):
    from elva_jax.cli import main

    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{path} = " in f"\n{shown}" for path in ("name", "model.rope_theta", "log.wandb"))
    assert "stages.NAME.data.mixture.NAME.weight = 1.0" in shown
    assert "int ≥ 1, default 1536: D, width of the decoder" in shown
    words = ["config", "--config", f"{config_dir}/tiny.py:smoke", "--config.seed=3"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "seed = 3  [command line]" in shown
    assert "model.hidden_size = 96  [config file]" in shown
    assert "mesh.tensor = 1  [default]" in shown
    assert "stages.video.data.mixture.videos.weight = 2.0  [config file]" in shown
    assert main([*words, "--config.seeds=3"]) == 2
    assert "did you mean seed?" in capsys.readouterr().err
    assert main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/config.md").read_text()
    with pytest.raises(SystemExit):
        main(["config", "--config.seed=3"])
    assert "--config.seed=3 needs --config FILE.py" in capsys.readouterr().err
