"""One line for what a user's surroundings cause; what else is raised is reported as our bug."""

import errno
import json
import os
import re

import jinja2
import pytest

from elva_jax.errors import ConfigError, VideoError
from elva_jax.utils import failures


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_names_the_file_and_its_reason(number):
    error = OSError(number, "reason", "/a/b")
    line = failures.explain(error)
    assert line.startswith("/a/b: reason; ")
    assert len(line.splitlines()) == 1


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def nest():
    return nest()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bytearray(2**62), "not enough memory"),
        (lambda: "\udcff".encode(), "invalid characters"),
        (lambda: b"\xff".decode(), "invalid characters"),
        (lambda: json.loads("{"), "should be JSON"),
        (lambda: jinja2.Template("{% if %}"), "chat template"),
        (lambda: re.compile("("), "regular expression"),
        (lambda: os.stat("a\0b"), "null character"),
        (nest, "nested too deeply"),
    ],
)
def test_what_surroundings_cause_has_a_way_out(call, words):
    line = failures.explain(raised(call))
    assert words in line
    assert "; " in line


BUGS = (KeyError("x"), TypeError(), AssertionError("a\nb"), ZeroDivisionError())


@pytest.mark.parametrize("error", BUGS)
def test_what_only_a_bug_causes_says_so(capsys, error):
    assert failures.report(error, "elva x", debug=False) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert "bug of elva_jax" in line
    assert "--debug" in line


def test_statuses_and_traces(capsys):
    assert failures.report(ConfigError("a"), "elva x", debug=False) == 2
    assert failures.report(VideoError("v", "a\nb"), "elva x", debug=False) == 1
    assert capsys.readouterr().err == "elva x: a\nelva x: v: a b\n"
    failures.report(raised(lambda: {}["k"]), "elva x", debug=True)
    assert "Traceback" in capsys.readouterr().err
