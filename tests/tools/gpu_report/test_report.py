"""The GPU report: its dry run on a CPU, parts that hang and crash, and what it may import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elva_jax.tools.bench.train_step import summary
from elva_jax.tools.gpu_report import page, sections, stages, worker
from elva_jax.tools.gpu_report.cards import card_of, plan_device
from elva_jax.tools.gpu_report.context import Context
from elva_jax.tools.gpu_report.driver import Report, Settings, rows_of, run_parts
from elva_jax.tools.gpu_report.parts import train
from elva_jax.tools.gpu_report.registry import PARTS, Part
from elva_jax.tools.plan.hardware import DEVICES

REPO = Path(__file__).parents[3]
ABOUT = {"card": "a card", "date": "2026-01-01", "dry": True}
# Parts that differ by an option alone are left out, and those whose programs other tests compile:
# training steps (test_train.py) and the plan (tests/tools/plan).
DRY = ("environment", "answer_7b", "attention", "table5", "memory_merge_hr")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """All measurements of a dry run, by part."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for name in DRY:
        file = folder / f"{name}.jsonl"
        words = [name, "--rows", str(file), "--dry-run", "--peak-tflops=1", "--bandwidth=1"]
        assert worker.main(words) == 0
        found[name] = rows_of(file)
    return found


def test_every_part_measures_something_without_an_error(rows):
    for name, measured in rows.items():
        assert measured, name
        assert [row["error"] for row in measured if "error" in row] == [], name


def test_measurements_are_consistent(rows):
    by_case = {row["case"]: row for row in rows["answer_7b"]}
    prefill, decode = by_case["prefill"], by_case["decode"]
    share = prefill["flops"] / prefill["seconds"]["median"] / 1e12
    assert prefill["share"] == pytest.approx(share)
    assert decode["share"] == pytest.approx(decode["bytes"] * decode["tokens_per_second"] / 1e12)
    assert 0 < decode["bytes_of_weights"] < by_case["weights"]["bytes"]
    for row in rows["attention"]:
        assert max(row["errors"].values()) < 1e-2  # of bfloat16
    times = {(row["frames"], row["variant"]): row for row in rows["table5"] if "variant" in row}
    assert times[4, "merge_hr"]["kept"] < times[4, "encoder_based"]["kept"] == 1
    assert times[4, "merge_hr"]["tokens"] < times[4, "encoder_based"]["tokens"]


def test_the_page_has_every_table(rows):
    parts = {name: {"status": "done", "seconds": 1, "note": ""} for name in rows}
    text = page.markdown(
        {"about": ABOUT, "parts": {name: {**parts[name], "rows": rows[name]} for name in rows}}
    )
    for heading in ("Goals", "7B:", "Table 5", "Attention"):
        assert f"## {heading}" in text
    for words in ("| bfloat16 |", "+ merge + HR", "| packed | 64 | gradients |"):
        assert words in text
    assert "fails" not in text


def test_without_a_gpu_no_large_model_is_made(tmp_path, capsys):
    file = tmp_path / "rows"
    assert worker.main(["answer_7b", "--rows", str(file)]) == 2
    assert "JAX sees no GPU" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("stage", list(train.SETTINGS))
def test_the_real_steps_have_sound_configs(tmp_path, stage):
    """All that a dry run replaces in the parts about training."""
    context = Context(tmp_path / "rows", card_of("NVIDIA H100 PCIe"), dry=False)
    for words in train.SETTINGS[stage].values():
        task = stages.make(context, stage, *words)
        assert (task.name, task.config.model.hidden_size) == (stage, 1536)
        assert task.stage.batch_size == stages.ROWS
    assert stages.device_kind(context) in DEVICES
    # Half of the peak for two seconds, through the summary that both trainers report.
    report = summary(task, 8000.0, 756e12, [2.0], None) | {"peak_gib": 12.5}
    row = {"case": "as configured", "stage": stage, **train.with_share(context, report)}
    parts = {f"train_{stage}": [row], f"pytorch_{stage}": [{**row, "case": "eager"}]}
    plan = {"case": stage, "device": "h100", "memory": {"total": 2**34}, "seconds": [1.5, 2.5]}
    text = sections.training(parts) + sections.plan({**parts, "plan": [plan]})
    assert f"| {stage} | ours | 4 | 8,000 | 2.000 | 4,000 | 378.0 | 50.0 | 12.50 |" in text
    assert f"| {stage} | PyTorch, eager | 4 |" in text
    assert f"| {stage} | h100 | 16.00 | 12.50 | 1.50–2.50 | 2.00 |" in text
    assert f"| {stage}: MFU, % | 50.0 | 50.0 | yes |" in sections.goals(parts)


def test_table_5_is_beside_the_papers_cells():
    def spread(seconds):
        return dict.fromkeys(("median", "least", "most"), seconds)

    rows = [
        {"case": "", "variant": name, "frames": 32, "tokens": 9, "kept": 1.0, "seconds": spread(s)}
        for name, s in (("encoder_based", 2.0), ("merge_hr", 0.1))
    ]
    peaks = {"encoder_based": 40, "merge_hr": 20}
    memory = {
        f"memory_{name}": [{"case": "", "frames": 32, "peak_bytes": size * 2**30}]
        for name, size in peaks.items()
    }
    parts = {"table5": rows, **memory}
    line = sections.table5(parts).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["32", "+ merge + HR"]
    assert cells[5:] == ["95.0", "91.5", "20.00", "50.0", "25.1"]
    goals = sections.goals(parts).splitlines()
    assert "| 91.5 | 95.0 | yes |" in goals[-3]
    assert goals[-1].endswith("| 96.3 | – | – |")


def test_a_part_that_hangs_or_crashes_loses_only_itself(tmp_path):
    write = "import sys, time; f = open(sys.argv[sys.argv.index('--rows') + 1], 'w'); "
    line = 'print(\'{"case": "one"}\', file=f, flush=True); '
    scripts = {
        "hangs": write + line + "print('{\"case', file=f, flush=True); time.sleep(60)",
        "crashes": write + line + "sys.exit('no memory')",
        "works": write + line,
        "late": "",
    }
    limits = {"hangs": 0.6}
    parts = [
        Part(
            name=name, module="", seconds=limits.get(name, 9), command=(sys.executable, "-c", text)
        )
        for name, text in scripts.items()
    ]
    settings = Settings(output=tmp_path, seconds=60, dry=True, least=0.1, grace=0.1)
    found = run_parts(parts[:3], settings, ABOUT).parts
    assert [found[name]["status"] for name in ("hangs", "crashes", "works")] == [
        *("time limit", "failed", "done")
    ]
    assert found["crashes"]["note"] == "exit status 1: no memory"
    assert all(entry["rows"] == [{"case": "one"}] for entry in found.values())
    # Finished parts are kept, and a part without time is not started.
    (tmp_path / "parts" / "works.jsonl").unlink()
    settings = Settings(output=tmp_path, seconds=0, dry=True)
    again = run_parts([parts[2], parts[3]], settings, ABOUT).parts
    assert again["works"] == found["works"]
    assert again["late"]["status"] == "not started"
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["parts"] == again
    assert "| hangs | time limit |" in (tmp_path / "report.md").read_text()
    other = {**ABOUT, "card": "another card"}
    assert Report(settings, other).parts == {}


def test_a_killed_script_leaves_what_it_has_and_no_process(tmp_path):
    """SIGTERM in the middle of a part, through the script itself."""
    script = [str(REPO / "launch" / "gpu_report.sh"), "--dry-run", "--output", str(tmp_path)]
    words = ["--part", "environment", "--part", "serve"]
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.Popen(
        [*script, *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    line = process.stderr.readline()
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert line.startswith("environment: at most"), line + errors
    assert process.returncode == 130
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["environment"]["status"] == "interrupted"
    assert "| environment | interrupted |" in (tmp_path / "report.md").read_text()


def test_it_imports_nothing_that_a_bare_gpu_machine_lacks():
    """With all of these away, every module that a part imports is found."""
    absent = ("grain", "tensorflow_datasets", "tensorflow", "av", "qwix", "tensorboardX", "wandb")
    modules = [
        "elva_jax.tools.gpu_report.__main__",
        "elva_jax.tools.gpu_report.worker",
        *(f"elva_jax.tools.gpu_report.parts.{part.module}" for part in PARTS),
        *("elva_jax.tools.bench.train", "elva_jax.tools.bench.train_pytorch"),
        *("elva_jax.tools.bench.video_llm", "elva_jax.tools.plan.stage"),
        *("elva_jax.training.step", "elva_jax.training.setup", "elva_jax.tasks.registry"),
        *("elva_jax.config.load", "elva_jax.parallel.mesh", "elva_jax.inference.quantization"),
    ]
    code = f"""
import importlib, sys
for name in {absent!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "tflops", "terabytes", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 2.039, "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", 312, 1.555, "a100-40g"),
        ("NVIDIA A100 80GB PCIe", 312, 1.935, "a100-80g"),
        ("NVIDIA H100 80GB HBM3", 989, 3.35, "h100"),
        ("NVIDIA H100 PCIe", 756, 2.0, "h100"),
        ("NVIDIA H200", 989, 4.8, "h200"),
        ("NVIDIA L40S", 362, 0.864, "a100-80g"),
        ("NVIDIA GeForce RTX 4090", 165.2, 1.008, "rtx4090"),
        ("NVIDIA A10", 125, 0.6, "a10-24g"),
        ("NVIDIA T1000", None, None, "a100-80g"),
    ],
)
def test_cards_are_known_by_the_names_that_drivers_give_them(name, tflops, terabytes, kind):
    card = card_of(name)
    if tflops is None:
        assert (card.flops, card.bandwidth) == (None, None)
        card = card_of(name, 7, 0.5)
        assert (card.flops, card.bandwidth) == (7e12, 0.5e12)
    else:
        assert (card.flops, card.bandwidth) == (tflops * 1e12, terabytes * 1e12)
    assert plan_device(name) == kind
