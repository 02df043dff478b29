"""A few inputs of each fuzz harness; by hand they run for half an hour each."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parent)


@pytest.mark.parametrize("name", ["config", "json_records", "safetensors_files"])
def test_smoke(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for module in ("common", name):
        sys.modules.pop(module, None)
    harness, common = importlib.import_module(name), importlib.import_module("common")
    report = common.smoke(harness.target, harness.grow, harness.SEEDS, 150, tmp_path)
    assert report["inputs"] > 150
    assert report["outcomes"] > 10
    assert report["findings"] == {}


def test_a_finding_is_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("common")

    def target(data, folder):
        if data == b"!":
            raise KeyError("x")
        while data == b"loop":
            pass

    monkeypatch.setattr(common, "LIMIT", 0.2)
    found = common.smoke(target, lambda rng: b"a", [b"!", b"loop"], 3, tmp_path)["findings"]
    assert sorted(name.split()[0] for name in found) == ["KeyError", "slow"]
