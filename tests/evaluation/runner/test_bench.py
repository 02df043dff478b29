"""`elva bench evaluate` on a small built data set."""

import json

from elva_jax.cli import main


def test_it_compares_with_one_by_one_asking(generator, data_dir, tmp_path, capsys):
    generator.save_pretrained(tmp_path / "model")
    where = ["--checkpoint", str(tmp_path / "model"), "--data-dir", str(data_dir)]
    size = ["--data", "moving_shapes/small", "--limit", "1", "--batch-size", "8"]
    times = ["--max-new-tokens", "2", "--repeats", "1", "--processes", "1", "--weights", "int8"]
    file = tmp_path / "bench.json"
    assert main(["bench", "evaluate", *where, *size, *times, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["same"] is True
    assert set(report["seconds"]) == {"one by one", "runner"}
    assert "answers equal" in shown
    assert f"{report['questions']} questions about 1 videos" in shown
