"""Every example runs on the tiny model that it makes, all in one process to share programs."""

import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Words to add to an example's defaults, and what its output must hold.
CASES = {
    "ask_video.py": ([], "log-likelihood"),
    "hidden_states.py": (["--layers", "0", "2"], "similarity.png"),
    "custom_merging.py": ([], "pairs of frames"),
    "custom_patch_embed.py": (["--steps", "5"], "step 5: loss"),
    "finetune_own_videos.py": (["--steps", "2"], "mine 2/2"),
    "lora.py": (["--steps", "2"], "decoder/layers/q_proj/kernel"),
    "export_to_hf.py": ([], "exported: before"),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """run(name) -> (the example's variables, its output), started in an empty folder."""

    def start(name):
        words, expected = CASES[name]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *words])
        variables = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capfd.readouterr()
        assert expected in out
        assert err == "", "an example, and the library in it, must not warn"
        return variables, out

    mpl.use("agg")
    return start


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(CASES)


def test_asking(run):
    _, out = run("ask_video.py")
    answer = out.splitlines()[0].removeprefix("Answer: ")
    assert f"What color is the square? {answer!r}" in out, "streamed and batched answers differ"


def test_similarity_maps(run, tmp_path):
    variables, _ = run("hidden_states.py")
    assert (tmp_path / "similarity.png").stat().st_size > 5000
    assert [m.shape for m in variables["maps"].values()] == [(4, 4, 4)] * 2
    still = variables["maps"][0] > 0.999
    assert 0.5 < still.mean() < 1, "the noise stays, the square moves"


def test_a_policy_of_ones_own_merges_pairs_of_frames(run):
    variables, _ = run("custom_merging.py")
    hidden, model = variables["hidden"], variables["model"]
    patches = len(model.read_media(variables["video"]).patches)
    first, second = (block.layout.length for block in hidden.blocks)
    assert first - second == patches // 2


def test_a_patch_embedding_of_ones_own_learns(run):
    _, out = run("custom_patch_embed.py")
    first, last = (float(line.split()[-1]) for line in out.splitlines())
    assert last < first


def test_fine_tuning_on_own_videos(run):
    _, out = run("finetune_own_videos.py")
    assert "before" in out
    assert "after" in out


def test_lora_changes_the_matrices_it_adapts_alone(run):
    variables, _ = run("lora.py")
    changes = variables["changes"]
    assert changes["decoder"]["layers"]["q_proj"]["kernel"] > 0
    assert changes["decoder"]["embed_tokens"] == 0


def test_an_exported_model_answers_as_before(run):
    variables, _ = run("export_to_hf.py")
    before, after = variables["answers"]
    assert before == after
