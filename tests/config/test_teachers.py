"""Tests of the group `teachers`: which of them guide, and the messages where they cannot."""

import pytest

from elva_jax.config import schema
from elva_jax.config.load import load, resolve
from elva_jax.config.serialize import config_from_dict, config_to_dict
from elva_jax.config.teachers import teachers_of, with_teacher
from elva_jax.errors import ConfigError


@pytest.fixture
def config(config_dir):
    """The tiny run, whose trained SigLIP and a ViViT guide."""
    c = load(f"{config_dir}/tiny.py")
    with c.unlocked():
        c.teachers.siglip = schema.ConfigDict(c.teacher.to_dict())
        c.teachers.vivit = schema.tower()
        c.teachers.vivit.update(kind="vivit", init_from="x", num_frames=4, tubelet=2, weight=0.5)
    return c


def test_teachers_are_the_group_or_else_the_only_one(config):
    several = resolve(config)
    assert {name: t.weight for name, t in teachers_of(several).items()} == {
        "siglip": 1.0,
        "vivit": 0.5,
    }
    alone = with_teacher(several, several.teachers["vivit"])
    assert list(teachers_of(alone)) == ["teacher"]
    assert alone.teacher.kind == "vivit"
    config.teachers.siglip.weight = 0.0
    assert list(teachers_of(resolve(config))) == ["vivit"]
    saved = config_to_dict(several)
    assert config_from_dict(saved) == several
    del saved["teachers"]
    assert list(teachers_of(config_from_dict(saved))) == ["teacher"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vivit": {"tubelet": 3}}, r"^teachers\.vivit\.tubelet: 3 does not divide num_frames = 4"),
        ({"vivit": {"kind": "dinov2"}}, r"^teachers\.vivit\.num_frames: a dinov2 sees one image"),
        ({"vivit": {"patch_size": 500}}, r"^teachers\.vivit\.patch_size: must be in 1 … image_s"),
        ({"vivit": {"kind": "vivid"}}, r"^teachers\.vivit\.kind: .*did you mean vivit\?"),
        ({"vivit": {"weight": -1.0}}, r"^teachers\.vivit\.weight: cannot be negative"),
        (
            {"vivit": {"weight": 0.0}, "siglip": {"weight": 0.0}},
            r"^teachers\.\*\.weight: no teacher has a weight above 0, and stages\.image\.loss",
        ),
        ({"vivit": {"init_from": ""}}, r"^teachers\.vivit\.init_from: is empty, so its weights"),
        ({"siglip": {"num_layers": 4}}, r"^teachers\.siglip\.init_from: .* another tower; set it"),
        ({"a/b": {}}, r"^teachers\.a/b: the name must begin with a letter and consist of letters"),
    ],
)
def test_teachers_that_cannot_guide_are_refused_by_name(config, changes, message):
    with config.unlocked():
        for name, values in changes.items():
            if name not in config.teachers:
                config.teachers[name] = schema.tower()
            config.teachers[name].update(values)
    with pytest.raises(ConfigError, match=message) as error:
        resolve(config)
    assert "\n" not in str(error.value)


def test_one_teacher_without_weight_or_source_is_refused(config):
    config.teachers = schema.ConfigDict()
    config.teacher.weight = 0.0
    with pytest.raises(ConfigError, match=r"^teacher\.weight: no teacher has a weight above 0"):
        resolve(config)
    config.teacher.weight = 1.0
    config.curriculum = ("image",)
    with pytest.raises(ConfigError, match=r"needs a teacher: .* or set teacher\.init_from"):
        resolve(config)
