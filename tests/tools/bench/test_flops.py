"""Tests of `elva bench flops`: the FLOPs of Table 5."""

import pytest

from elva_jax.tools.analysis import xla

PLAIN = """
from elva_jax.config import schema

def get_config(arg=""):
    c = schema.base()
    c.curriculum = ("one",)
    c.stages.one = schema.stage()
    c.stages.one.steps = 1
    c.stages.one.data.mixture.clips = schema.source("clips", "train")
    return c
"""


def test_report_has_cells_goals_and_reductions(bench):
    status, out, err, report = bench("flops")
    assert (status, err) == (0, "")
    assert len(report["rows"]) == 15
    for row in report["rows"]:
        if row["variant"] == "merv":  # not in the paper's table
            assert (row["paper_tflops"], row["deviation"]) == (None, None)
        else:
            assert abs(row["deviation"]) < 0.01
        parts = row["parts_tflops"]
        assert row["total_tflops"] == pytest.approx(sum(parts.values()))
        assert row["first_token_tflops"] == pytest.approx(row["total_tflops"] - parts["decode"])
        assert row["unpadded_tflops"] < row["total_tflops"]
    goals = {(goal["frames"], goal["variant"], goal["counted"]): goal for goal in report["goals"]}
    # The paper's cells do not reach the two goals either: 14 of 260 T, 44 of 1030 T.
    assert goals[32, "merge_hr", "paper"]["reduction"] == pytest.approx(1 - 14 / 260)
    assert goals[128, "merge_hr", "paper"]["reduction"] == pytest.approx(1 - 44 / 1030)
    for (frames, variant, counted), goal in goals.items():
        ours = counted in ("first_token", "total", "unpadded")
        assert goal["reached"] == (ours and variant == "merge_hr"), (frames, variant, counted)
        assert goal["reached"] == (goal["reduction"] >= {32: 0.95, 128: 0.97}[frames])
    assert "encoder-free     100.0    146           146.1         +0.06" in out
    assert "+ merge + HR    95       94.6  no" in out


def test_other_frame_counts_and_configs_can_be_chosen(bench, config_dir):
    status, out, _, report = bench(
        "flops", "--frames", "4,256,4", "--config", f"{config_dir}/elva.py:size=1_5b"
    )
    assert status == 0
    assert [row["frames"] for row in report["rows"]] == [4] * 5 + [256] * 5
    assert {row["paper_tflops"] for row in report["rows"]} == {None}
    assert report["goals"] == []
    # With few frames, one patch per grid position exceeds the paper's retention: it gets a mark.
    few = next(row for row in report["rows"] if row["variant"] == "merge_hr")
    assert few["left"] > few["retention"] + 0.05
    assert f"{100 * few['left']:.1f}*" in out
    assert "* the nearest" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--frames", "32,x"],
            "needs whole numbers separated by commas, such as 32,64, got '32,x'",
        ),
        (["--frames", "32,0"], "must be at least 1, got 0"),
        (["--check", "--frames", "32"], "--frames has no part in --check"),
        (["--config", "nowhere.py"], "nowhere.py: no such config file"),
        (["--speed"], "unrecognized option: --speed"),
    ],
)
def test_misuse_is_explained_in_one_line(bench, words, message):
    status, out, err, report = bench("flops", *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err + out
    assert report is None


def test_model_without_merging_is_refused(bench, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN)
    status, _, err, _ = bench("flops", "--config", str(tmp_path / "plain.py"))
    assert status == 2
    assert err == "elva bench: model.merge_layers: names no layer, so nothing merges; name some\n"


@pytest.mark.parametrize(
    ("xla_count", "status", "verdict"), [(100.0, 0, "within 3 %"), (96.0, 1, "NOT within 3 %")]
)
def test_check_fails_beyond_its_tolerance(bench, monkeypatch, xla_count, status, verdict):
    monkeypatch.setattr(
        xla,
        "check",
        lambda config, tower: [xla.Check(program="a part", ours=1e9, xla=xla_count * 1e7)],
    )
    got, out, _, report = bench("flops", "--check")
    assert got == status
    assert report["ok"] == (status == 0)
    assert out.splitlines()[-1] == verdict
    assert f"a part          1.000        {xla_count / 100:.3f}" in out
