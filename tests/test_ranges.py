"""Every numeric option of every command and every numeric key has a range, and refuses the rest."""

import argparse
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from elva_jax import EvalConfig, Hybrid, MergeLayer, Sampling, read_video, testing
from elva_jax.cli import COMMANDS, _parser, main
from elva_jax.commands import flags
from elva_jax.config import describe
from elva_jax.config.check import check_value
from elva_jax.config.keys import key_types, keys
from elva_jax.errors import ConfigError
from elva_jax.tools.bench.arguments import counts
from elva_jax.utils import numbers
from elva_jax.utils.numbers import Range

WRONG = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "1" + "0" * 20,
    "-" + "9" * 5000,
    "x",
    "",
    "²",
    "1_0_",
]
# Options that read numbers in a form of their own.
FORMS = {flags.shard, flags.indices, flags.span, counts}


def parsers():
    """(words of the command, its parser) of every sub-command."""

    def inside(words, parser):
        found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not found:
            yield words, parser
        for action in found:
            for name, sub in action.choices.items():
                yield from inside((*words, name), sub)

    for command in COMMANDS:
        top = next(a for a in _parser(command)._actions if hasattr(a, "choices") and a.choices)
        yield from inside((command,), top.choices[command])


OPTIONS = [
    (words, parser, action)
    for words, parser in parsers()
    for action in parser._actions
    if action.option_strings and action.nargs != 0
]
NUMERIC = [o for o in OPTIONS if isinstance(o[2].type, Range) or o[2].type in FORMS]


def test_no_option_reads_numbers_without_a_range():
    assert len(NUMERIC) > 60
    for words, _, action in OPTIONS:
        where = f"{words} {action.option_strings}"
        assert action.type not in (int, float), f"{where}: has no range"
        number = type(action.default) in (int, float)
        assert not number or isinstance(action.type, Range), f"{where}: has no range"


@pytest.mark.parametrize(
    ("words", "parser", "action"), NUMERIC, ids=[f"{' '.join(w)} {a.dest}" for w, _, a in NUMERIC]
)
def test_a_number_that_cannot_be_is_refused_before_any_work(words, parser, action, capsys):
    wrong = [*WRONG, "-1" if action.dest != "seed" else "nan"]
    if isinstance(action.type, Range):
        wrong += [str(action.type.maximum * 2 + 1)]
        assert action.default is None or action.default == action.type(str(action.default))
    for text in wrong:
        if action.type in FORMS or action.type.kind is int or text not in ("1" + "0" * 20,):
            with pytest.raises(SystemExit) as error:
                parser.parse_args([f"{action.option_strings[-1]}={text}"])
            assert error.value.code == 2
            last = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"argument {action.option_strings[-1]}" in last
            assert len(last) < 250


def test_the_whole_command_line_refuses_too(capsys):
    ask = ["generate", "--checkpoint", "x", "--video", "y", "--prompt", "z"]
    for option in ("--temperature=nan", "--frames=1000000000", "--max-new-tokens=10000000000"):
        with pytest.raises(SystemExit):
            main([*ask, option])
        assert "must be" in capsys.readouterr().err


NUMBER_KEYS = [
    (f"{prefix}{name}", kind, field.metadata)
    for prefix, cls in describe.walk()
    for name, field in keys(cls).items()
    if "limits" in field.metadata
    for kind in [key_types(cls)[name]]
    if {int, float} & {kind, *typing.get_args(kind)[:1]}
]


@pytest.mark.parametrize(("path", "kind", "metadata"), NUMBER_KEYS, ids=[k[0] for k in NUMBER_KEYS])
def test_a_number_that_cannot_be_is_refused_in_every_key(path, kind, metadata):
    inner = kind if kind in (int, float) else typing.get_args(kind)[0]
    wrong = [math.nan, math.inf, -math.inf, "1", None, True, (1,), [1], {}, 1j, 10**400, -(10**400)]
    wrong += [10**20] if inner is int else [1e39, -1e39]
    wrong += [1.5, 1e20] if inner is int else []
    for value in wrong:
        with pytest.raises(ConfigError) as error:
            check_value(path, value, inner, metadata)
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert len(message) < 300


WHOLE = ("seed", "before_layer", "limit", "batch_size", "num_frames", "high_frames", "low_frames")
WHOLE += ("high_edge", "low_edge")
CALLS = {
    "temperature": lambda v: Sampling(temperature=v),
    "top_p": lambda v: Sampling(top_p=v),
    "repetition_penalty": lambda v: Sampling(repetition_penalty=v),
    "seed": lambda v: Sampling(seed=v),
    "before_layer": lambda v: MergeLayer(v),
    "threshold": lambda v: MergeLayer(0, threshold=v),
    "ratio": lambda v: MergeLayer(0, ratio=v),
    "high_frames": lambda v: Hybrid(high_frames=v),
    "low_frames": lambda v: Hybrid(low_frames=v),
    "high_edge": lambda v: Hybrid(high_edge=v),
    "low_edge": lambda v: Hybrid(low_edge=v),
    "limit": lambda v: EvalConfig(limit=v),
    "batch_size": lambda v: EvalConfig(batch_size=v),
    "num_frames": lambda v: read_video(b"", num_frames=v),
    "fps": lambda v: read_video(b"", fps=v),
    "folder_fps": lambda v: read_video(b"", num_frames=1, folder_fps=v),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_number_that_cannot_be_is_refused_in_calls(name):
    for value in (math.nan, math.inf, -math.inf, 10**400, "1", b"1", True, [1], 1j):
        # The suite checks annotations as well, which users do not.
        with pytest.raises((ConfigError, TypeCheckError), match=name):
            CALLS[name](value)
    with pytest.raises(ConfigError, match=name):
        CALLS[name](-(10**400) if name in WHOLE else math.nan)


@pytest.mark.parametrize("allowed", [numbers.TOKENS, numbers.TEMPERATURE])
def test_a_value_of_another_type_is_no_number(allowed):
    for value in (None, "1", b"1", True, [1], {}, 1j, object()):
        with pytest.raises(ConfigError, match=r"^x: must be a .*number in "):
            allowed.check("x", value)


def test_answering_refuses_counts_before_it_reads_media():
    model = testing.tiny_model()
    for words in ({"max_new_tokens": 10**9}, {"max_new_tokens": 0}, {"frames": 10**9}):
        for ask in (model.answer, lambda *a, **k: list(model.stream(*a, **k)), model.chat):
            arguments = ("no/such/video.mp4",) if ask == model.chat else ("no/such/video.mp4", "?")
            with pytest.raises(ConfigError, match="must be"):
                ask(*arguments, **words)


@given(st.integers(), st.integers(0, 10**6))
def test_a_range_of_whole_numbers_reads_what_is_in_it(value, least):
    allowed = numbers.whole(least, 2 * least + 1)
    if least <= value <= 2 * least + 1:
        assert allowed(str(value)) == value
        allowed.check("x", value)
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            allowed(str(value))
        with pytest.raises(ConfigError, match=r"^x="):
            allowed.check("x", value)


@given(st.floats())
def test_a_range_of_reals_reads_what_is_in_it(value):
    allowed = numbers.real(0, 1, open=True)
    if 0 < value <= 1:
        assert allowed(repr(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            allowed(repr(value))


LISTS = [option for option in OPTIONS if isinstance(option[2], argparse._AppendAction)]
SINGLE = [option for option in OPTIONS if option not in LISTS and option[2].dest != "_"]


@pytest.mark.parametrize(
    ("words", "action"),
    [(words, action) for words, _, action in SINGLE],
    ids=[f"{' '.join(words)} {action.dest}" for words, _, action in SINGLE],
)
def test_an_option_with_one_value_is_given_once(words, action, capsys):
    option = action.option_strings[-1]
    sound = {"shard": "0/2", "profile": "1:2", "mesh": "tensor=2", "save_merge_map": "m.png"}
    sound |= {"picture_size": "8x8", "question_tokens": "1:2"}
    value = sound.get(action.dest, str(next(iter(action.choices or "1"))))
    given = [option, *[value] * (action.nargs or 1)]
    with pytest.raises(SystemExit) as end:
        main([*words, *given, *given])
    assert end.value.code == 2
    assert f"{option}: given twice; give it once" in capsys.readouterr().err


def test_options_that_are_lists_take_several_values():
    lists = {(words[0], action.dest) for words, _, action in LISTS}
    wanted = {("generate", "video"), ("generate", "prompt"), ("chat", "stop"), ("plan", "stage")}
    assert wanted <= lists
    words = ["generate", "--checkpoint", "c"]
    for name in ("--video", "--prompt", "--stop"):
        words += [name, "a", name, "b"]
    args = _parser("generate").parse_args(words)
    assert args.video == args.prompt == args.stop == ["a", "b"]
