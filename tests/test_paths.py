"""Every option that names a file or folder, given what is none: one line, no trace, no hang."""

import argparse
import os
import signal

import pytest

from elva_jax.cli import COMMANDS, _parser, main

# Words for required options, so that the option under test is reached.
WORDS = {
    "checkpoint": "folder",
    "video": "garbage",
    "prompt": "?",
    "config": "garbage",
    "devices": "1",
    "manifest": "records.jsonl",
    "out": "out",
    "source": "records.jsonl",
    "run_dir": "folder",
    "a": "folder",
    "b": "folder",
}
# Every path that a user may name; media are refused by the tests of video/.
PATHS = ("FILE", "DIR", "SRC", "DST", "RUN", "SOURCE", "A", "B", "FILE.py[:ARG]", "FILE.png")
KINDS = {
    "missing": "missing",
    "folder": "folder",
    "garbage": "garbage",
    "pipe": "pipe",
    "device": "/dev/zero",
    "null": "a\0b",
    "surrogate": "a\udcffb",
    "newline": "a\nb",
    "long": "n" * 300,
    "below a file": "garbage/x",
    "loop": "loop",
}


def leaves(parser, words):
    """(command words, parser) of every command without sub-commands of its own."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, below in group.choices.items():
            yield from leaves(below, [*words, name])


def cases():
    for command in sorted(
        COMMANDS.keys() - {"bench"}
    ):  # an output that can be written starts to measure
        (group,) = (a for a in _parser(command)._actions if hasattr(a, "choices") and a.choices)
        for words, parser in leaves(group.choices[command], [command]):
            options = [a for a in parser._actions if a.metavar in (*PATHS, "FILE.jsonl")]
            for option in options:
                name = option.option_strings[0] if option.option_strings else option.dest
                if words != ["data", "build"] or name != "--root":
                    yield pytest.param(words, parser, option, id=f"{'-'.join(words)}-{name}")


def command_line(words, parser, option, value):
    line = list(words)
    if words == ["data", "build"]:
        line += ["--name", "x", "--workers", "1"]
    if words == ["train"]:
        line += ["--distributed", "off", "--workdir", "run"]
    for action in parser._actions:
        required = action.required and action.dest in WORDS
        if action is option or required:
            word = value if action is option else WORDS[action.dest]
            line += [f"{action.option_strings[0]}={word}"] if action.option_strings else [word]
    return line


@pytest.mark.parametrize(("words", "parser", "option"), sorted(cases(), key=lambda c: str(c.id)))
def test_what_is_no_file_is_told_in_one_line(words, parser, option, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("loop", "loop")
    with open("garbage", "wb") as file:
        file.write(bytes(range(256)) * 4)
    with open("records.jsonl", "w") as file:
        file.write('{"id": 1, "image": "x.png"}\n')
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # a hang fails as an interruption
    for kind, value in KINDS.items():
        line = command_line(words, parser, option, value)
        signal.alarm(60)
        try:
            status = main(line)
        except SystemExit as stop:
            status = stop.code
        finally:
            signal.alarm(0)
        err = capfd.readouterr().err
        assert status in (0, 1, 2), (kind, line, err)
        assert "Traceback" not in err, (kind, line, err)
        if status == 1:
            assert err.count("\n") == 1, (kind, line, err)
