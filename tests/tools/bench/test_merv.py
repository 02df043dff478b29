"""Tests of `elva bench merv`."""

from elva_jax.tools.analysis import merv


def test_parts_and_cells_are_those_of_the_paper(bench):
    status, out, err, report = bench("merv")
    assert (status, err) == (0, "")
    parts = report["parameters"]
    assert list(parts)[:6] == [*merv.ENCODERS, "projectors", "fusion"]
    assert parts["decoder"] == 6_738_415_616 + 64 * 2 * 4096  # LLaMA-2-7B with 64 more tokens
    for row in report["cells"]:
        assert f"{row['macs']['total'] / 1e12:.2f}" == f"{row['paper_tera']:.2f}"
    lines = [line.split() for line in out.splitlines()]
    assert ["dinov2", "304.37"] in lines
    assert ["unused", "value", "projection", "12.59"] in lines
    held = sum(count for name, count in parts.items() if not name.startswith("unused"))
    assert ["all", f"{held / 1e6:,.2f}"] in lines


def test_other_models_are_refused(bench, config_dir):
    status, _, err, _ = bench("merv", "--config", f"{config_dir}/tiny.py")
    assert status == 2
    assert "model.patch_embed is video; give a config of MERV" in err
