"""The examples in the docstrings of the public API run."""

import doctest
import inspect
from pathlib import Path

import pytest

import elva_jax
from elva_jax import testing
from elva_jax.tools.datasets.moving_shapes import builder

REPO = Path(__file__).parents[2]


def public():
    """(name, object) of everything that users are told of."""
    yield "elva_jax", elva_jax
    for name in elva_jax.__all__:
        yield name, getattr(elva_jax, name)
    for name in testing.__all__:
        yield f"testing.{name}", getattr(testing, name)


def doctests_of(name, value):
    """Doctests of an object's own docstring and, for a class, of its methods'."""
    holders = {name: value}
    if inspect.isclass(value):
        members = inspect.getmembers(value, inspect.isroutine)
        holders |= {f"{name}.{key}": member for key, member in members if not key.startswith("_")}
    parser = doctest.DocTestParser()
    for key, holder in holders.items():
        text = inspect.getdoc(holder)
        if text and ">>>" in text:
            yield parser.get_doctest(text, {}, key, None, None)


CASES = {test.name: test for name, value in public() for test in doctests_of(name, value)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what the examples name: the configs, and a built data set in .data."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(REPO / "configs")
    builder.build(folder / ".data", "easy", sizes={"test": 2}, workers=1)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs(name, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    runner.run(CASES[name], out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_public_name_has_an_example():
    documented = {name.split(".")[0] for name in CASES}
    assert set(elva_jax.__all__) - documented == set()
