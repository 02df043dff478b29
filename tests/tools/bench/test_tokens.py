"""Tests of `elva bench tokens`: Table 6."""

from elva_jax.tools.analysis import paper


def test_every_row_equals_the_papers(bench):
    status, out, err, report = bench("tokens")
    assert (status, err) == (0, "")
    assert {(row["high"], row["low"]): row["tokens"] for row in report["rows"]} == {
        (8, 16): 5976,
        (8, 32): 7144,
        (16, 0): 9616,
        (16, 8): 10_200,
        (16, 16): 10_784,
        (32, 0): 19_232,
    }
    assert "10,784  10,784" in out
    assert out.endswith("all as in the paper\n")


def test_different_count_is_reported_and_fails(bench, monkeypatch):
    monkeypatch.setitem(paper.TABLE6, (8, 16), 5975)
    status, out, _, report = bench("tokens")
    assert status == 1
    assert not report["ok"]
    assert "5,976   5,975" in out
    assert out.endswith("NOT as in the paper\n")


def test_file_that_cannot_be_written_is_named(bench, tmp_path):
    (tmp_path / "report").write_text("a file where a folder should be")
    status, _, err, _ = bench("tokens")
    assert status == 2
    assert err.startswith(f"elva bench: --json {tmp_path / 'report' / 'bench.json'}: ")
    assert err.count("\n") == 1
