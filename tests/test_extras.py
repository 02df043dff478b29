"""The core answers without the extras, a missing extra is one line, and pins match the lists."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from elva_jax import cli
from elva_jax.version import __version__

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
PINS = ("requirements.txt", "requirements-test.txt", "requirements-eval.txt")
NOT_PINNED = ("gpu",)  # for other machines than those that the pins are tested on


def asked_for(extras):
    """The requirements of some extras; those that only name other extras are left out."""
    found = [Requirement(text) for name in extras for text in EXTRAS[name]]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def closure(requirements):
    """Names of all packages that an installation of these requirements brings."""
    found, todo = set(), [Requirement(str(requirement)) for requirement in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {e for n, e in found if n == name}:
            found.add((name, extra))
            try:
                needed = [Requirement(text) for text in metadata.requires(name) or ()]
            except metadata.PackageNotFoundError:  # of another platform
                continue
            todo += [r for r in needed if not r.marker or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def only_in_extras():
    """The modules that a core installation lacks."""
    extra = closure(asked_for(set(EXTRAS) - set(NOT_PINNED))) - closure(CORE)
    return sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if {canonicalize_name(package) for package in packages} <= extra
    )


@pytest.fixture
def installed(tmp_path):
    """A folder with the metadata that an installation of this pyproject.toml writes."""
    lines = ["Metadata-Version: 2.4", f"Name: {PROJECT['name']}", f"Version: {__version__}"]
    lines += [f"Requires-Dist: {text}" for text in CORE]
    for name, texts in EXTRAS.items():
        lines += [f"Provides-Extra: {name}"]
        lines += [f'Requires-Dist: {text}; extra == "{name}"' for text in texts]
    (tmp_path / "elva_jax-0.dist-info").mkdir()
    (tmp_path / "elva_jax-0.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")
    return tmp_path


CORE_ONLY = """
import json, pathlib, sys
from importlib.machinery import PathFinder

class CoreOnly(PathFinder):
    blocked = {*json.loads(sys.argv[1])}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in cls.blocked
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = CoreOnly

import elva_jax
from elva_jax import cli, testing
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import config_to_dict

for name in elva_jax.__all__:
    if name not in ("evaluate", "train"):
        getattr(elva_jax, name)
elva_jax.EvalConfig()
merging = {"merge_policies": ("both",), "merge_thresholds": (0.6,), "merge_ratios": (0.6,)}
model = testing.tiny_model(num_layers=2, merge_layers=(1,), **merging)  # few programs
video = testing.tiny_video()
question, options = "What color is the square?", ["red", "blue"]
answer = model.answer(video, question, max_new_tokens=2)
scores = model.score(video, question, options)
assert model.chat(video, max_new_tokens=2).ask(question).text == answer
assert model.hidden_states(video, question)
save_weights("run/video", {"elva": model.params}, model.config, "video")
pathlib.Path("run/config.json").write_text(json.dumps(config_to_dict(model.config)))
model.tokenizer.save_pretrained("run/tokenizer")
assert cli.main("convert export run exported".split()) == 0
for path in ("run", "exported"):
    assert elva_jax.load(path).score(video, question, options) == scores, path

for command in cli.COMMANDS:
    try:
        cli.main([command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0, command
for words in sys.argv[2:]:
    assert cli.main(words.split()) == 1, words
"""


def test_the_core_answers_saves_and_loads_without_the_extras(installed):
    blocked = only_in_extras()
    assert {"grain", "tensorflow_datasets", "tensorboardX", "pyarrow", "matplotlib"} <= {*blocked}
    assert not {"optax", "yaml", "jax", "transformers"} & {*blocked}
    config = REPO / "configs" / "tiny.py"
    commands = {
        f"train --config {config}:smoke --workdir {installed / 'work'}": ("train", "grain"),
        "evaluate --checkpoint run": ("evaluate", "tensorflow_datasets"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY, json.dumps(blocked), *commands],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": f"{installed}:{REPO}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("elva ")]
    assert lines == [
        f'elva {command}: needs {module}; pip install "elva_jax[train]"'
        for command, module in commands.values()
    ]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("tensorflow_datasets.core", "train"),
        ("tensorboardX", "train"),
        ("pyarrow.parquet", "data"),
        ("matplotlib", "plots"),
        ("qwix", "quant"),
        ("wandb", "wandb"),
        ("optax", None),
        ("elva_jax.nothing", None),
    ],
)
def test_a_module_names_its_extra(installed, monkeypatch, module, extra):
    monkeypatch.syspath_prepend(installed)
    package = module.split(".")[0]
    expected = f'needs {package}; pip install "elva_jax[{extra}]"' if extra else None
    assert cli._missing_extra(module) == expected


def test_every_package_of_the_lists_is_pinned_once_and_no_other():
    wanted = [Requirement(text) for text in CORE] + asked_for(set(EXTRAS) - set(NOT_PINNED))
    text = "\n".join((REPO / name).read_text() for name in PINS)
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    assert len(pins) == sum(not line.startswith("#") for line in text.split("\n") if line)
    names = [canonicalize_name(name) for name, _ in pins]
    assert sorted(names) == sorted({canonicalize_name(r.name) for r in wanted})
    versions = dict(zip(names, (version for _, version in pins), strict=True))
    for requirement in wanted:
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement
