"""`--merging-profile NAME=KEY=VALUE;…`: what is read, refused and done."""

import pytest

from elva_jax import MergeLayer, Merging, testing
from elva_jax.cli import main
from elva_jax.config.merging_profiles import check_profiles, parse_profile
from elva_jax.config.serialize import freeze
from elva_jax.errors import ConfigError
from elva_jax.inference.request_settings import open_profiles

CONFIG = freeze(testing.tiny_config())


@pytest.mark.parametrize(
    ("text", "layers", "lines"),
    [
        ("a=merge_ratios=0.5", [(1, "threshold", 0.6, 0.5), (2, "both", 0.9, 0.5)], False),
        ("a=merge_thresholds=(0.8, -1)", [(1, "threshold", 0.8, 1), (2, "both", -1, 0.6)], False),
        ("a.b-1= merge_lines = true ;", [(1, "threshold", 0.6, 1), (2, "both", 0.9, 0.6)], True),
        (
            "late=merge_layers=0;merge_policies='ratio';merge_thresholds=1;merge_ratios=.3",
            [(0, "ratio", 1, 0.3)],
            False,
        ),
        (
            "late=merge_policies=[pool,both];merge_layers=0,2",
            [(0, "pool", 0.6, 1), (2, "both", 0.9, 0.6)],
            False,
        ),
    ],
)
def test_a_profile_changes_what_it_names(text, layers, lines):
    profile = parse_profile(text)
    (found,) = open_profiles(CONFIG, [profile]).items()
    assert found == (profile.name, Merging(tuple(MergeLayer(*each) for each in layers), lines))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "needs settings"),
        ("half=;", "needs settings"),
        ("=merge_ratios=1", "cannot name"),
        ("True=merge_ratios=1", "cannot name"),
        ("a b=merge_ratios=1", "cannot name"),
        (f"{'a' * 65}=merge_ratios=1", "cannot name"),
        ("a=merge_ratio=1", "did you mean merge_ratios"),
        ("a=hidden_size=1", "no such key 'hidden_size'"),
        ("a=merge_ratios", "needs a value"),
        ("a=merge_ratios=1;merge_ratios=1", "two values"),
        ("a=merge_ratios=many", "must be a number"),
        ("a=merge_ratios=0", "a: merge_ratios: must be"),
        ("a=merge_ratios=2", "a: merge_ratios: must be"),
        ("a=merge_thresholds=nan", "must be a finite number"),
        ("a=merge_policies=most", "not one of threshold"),
        ("a=merge_layers=-1", "cannot be negative"),
        ("a=merge_lines=maybe", "must be true or false"),
        ("a=merge_lines=true,false", "must be true or false"),
    ],
)
def test_what_cannot_be_read(capsys, text, words):
    line = ["serve", "--checkpoint", "none", "--merging-profile", text]
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=merge_layers=0,1,2", "a: model.merge_policies: needs one entry for each"),
        ("a=merge_layers=2,1", "a: model.merge_layers: must increase"),
        ("a=merge_layers=1,99", "a: model.merge_layers: 99 is not a layer"),
    ],
)
def test_what_does_not_fit_the_model(text, words):
    with pytest.raises(ConfigError, match=f"--merging-profile {words}"):
        open_profiles(CONFIG, [parse_profile(text)])


def test_too_many_and_two_of_one_name():
    profiles = [parse_profile(f"p{n}=merge_ratios=0.5") for n in range(9)]
    check_profiles(profiles[:8])
    with pytest.raises(ConfigError, match="at most 8"):
        check_profiles(profiles)
    with pytest.raises(ConfigError, match="p1: is there twice"):
        check_profiles([*profiles[:2], profiles[1]])
