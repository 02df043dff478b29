"""Tests of `elva compile`: what it stores is what a later start needs."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

import elva_jax
from elva_jax import cli
from elva_jax.testing import tiny_model, tiny_video
from elva_jax.utils.compilation_cache import ProgramCount

SETTINGS = ("dir", "max_size")
# One merging layer, by similarity, so that few programs are compiled.
MERGING = {"merge_layers": (1,), "merge_policies": ("threshold",), "merge_thresholds": (0.6,)}
MODEL = {"num_layers": 2, "merge_ratios": (1.0,), **MERGING}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An empty folder of programs."""
    names = [f"jax_compilation_cache_{name}" for name in SETTINGS]
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    jax.clear_caches()
    yield tmp_path / "cache" / "elva_jax" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def test_a_later_start_loads_all_programs(tmp_path, programs, capsys):
    tiny_model(**MODEL).save_pretrained(tmp_path / "tiny")
    for number, frame in enumerate(tiny_video(4)):
        (tmp_path / "video").mkdir(exist_ok=True)
        Image.fromarray(np.asarray(frame)).save(tmp_path / "video" / f"{number}.png")
    words = ["compile", "--checkpoint", str(tmp_path / "tiny"), "--max-new-tokens", "4"]
    video = str(tmp_path / "video")
    assert cli.main([*words, "--video", video, "--question-tokens", "12:20"]) == 0
    said = capsys.readouterr().out
    assert int(re.search(r": (\d+) programs compiled, 0 loaded", said)[1]) > 10
    stored = set(programs.glob("*-cache"))
    for question in ("Who?", "What moves there?"):
        jax.clear_caches()
        with ProgramCount() as count:
            elva_jax.load(tmp_path / "tiny").answer(video, question, max_new_tokens=4)
        assert count.loaded > 10
    # JAX keeps single operations that earlier tests have run, so they were not stored before.
    new = {path.name.partition("-")[0] for path in set(programs.glob("*-cache")) - stored}
    assert new <= {"jit_convert_element_type", "jit_broadcast_in_dim"}


def test_made_videos_and_wrong_options(tmp_path, programs, capsys):
    tiny_model(**MODEL).save_pretrained(tmp_path / "tiny")
    words = ["compile", "--checkpoint", str(tmp_path / "tiny"), "--frames", "2"]
    assert cli.main([*words, "--picture-size", "64x32", "--question-tokens", "12:12"]) == 0
    assert re.findall(r"^(\d+%) of the picture changes: ", capsys.readouterr().out, re.M) == [
        *("0%", "50%", "100%")
    ]
    for wrong, line in (
        (["--picture-size", "64"], "'64' is not WxH, such as 1280x720"),
        (["--high-frames", "2"], "hybrid resolution needs a --video"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*words[:3], *wrong])
        assert line in capsys.readouterr().err
