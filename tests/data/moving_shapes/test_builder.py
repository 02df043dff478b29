"""Tests of the TFDS builder of moving_shapes: ArrayRecord files without TensorFlow, resumable."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from elva_jax.errors import DataError
from elva_jax.tools.datasets.moving_shapes import records
from elva_jax.tools.datasets.moving_shapes.builder import MovingShapes, build

SMALL = {"image": 12, "train": 70, "test": 8, "long": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    build(folder, "easy", sizes=SMALL, workers=1)
    return folder


def test_records_depend_on_the_seed_and_not_on_the_number_of_processes(folder, tmp_path):
    build(tmp_path, "easy", sizes=SMALL, workers=2)
    for split, total in SMALL.items():
        one, two = (
            tfds.data_source("moving_shapes/easy", split=split, data_dir=place)
            for place in (folder, tmp_path)
        )
        assert len(one) == len(two) == total
        for index in range(total):
            expected = records.record_of("easy", 0, split, index, total)
            expected = {k: v.encode() if isinstance(v, str) else v for k, v in expected.items()}
            assert one[index] == two[index] == expected
    files = sorted(path.relative_to(folder) for path in folder.rglob("*array_record*"))
    assert len(files) == len(SMALL)
    assert all((folder / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_record_has_the_fields_that_the_pipeline_reads(folder):
    record = tfds.data_source("moving_shapes/easy", split="train", data_dir=folder)[0]
    assert set(record) == {"id", "media", "kind", "annotation"}
    assert record["kind"] == b"video"
    annotation = json.loads(record["annotation"])
    assert set(annotation["captions"]) == {"object", "caption"}
    assert {"objects", "questions", "named_objects"} <= set(annotation)
    for turn in [*annotation["captions"]["object"], *annotation["captions"]["caption"]]:
        assert set(turn) == {"question", "answer"}
    assert set(annotation["questions"][0]) == {"family", "question", "answer", "options", "letter"}


def test_slices_of_a_split_keep_the_order(folder):
    part = tfds.data_source("moving_shapes/easy", split="image[:25%]", data_dir=folder)
    assert [record["id"] for record in part] == [
        b"easy-image-000000",
        b"easy-image-000001",
        b"easy-image-000002",
    ]


def test_builds_and_reads_without_tensorflow(tmp_path):
    code = (
        "import sys\nfrom elva_jax.tools.datasets.moving_shapes.builder import build\n"
        f"b = build({str(tmp_path)!r}, 'hard', sizes={{'train': 3}}, workers=1)\n"
        "loaded = sorted(m for m in ('tensorflow', 'jax') if m in sys.modules)\n"
        "print(len(b.as_data_source('train')), loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3 []"
    assert "moving_shapes/hard train: 3 records" in done.stdout
    assert not done.stderr.strip()


def test_complete_data_set_is_not_rebuilt(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*array_record*")}
    build(folder, "easy", sizes=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*array_record*")}


@pytest.mark.parametrize("other", [{"sizes": {**SMALL, "train": 71}}, {"sizes": SMALL, "seed": 5}])
def test_other_sizes_or_seed_are_refused(folder, other):
    with pytest.raises(
        DataError,
        match=r"moving_shapes/easy/1\.0\.0: holds seed 0 .* delete it or choose another data_dir",
    ):
        build(folder, "easy", **other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"config_name": "medium"},
            "moving_shapes/medium: no such config; choose one of easy, hard",
        ),
        ({"sizes": {"val": 3}}, "no split 'val'"),
    ],
)
def test_unknown_names_are_refused(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_killed_build_can_be_repeated(tmp_path):
    code = (
        "from elva_jax.tools.datasets.moving_shapes.builder import build\n"
        f"build({str(tmp_path)!r}, 'easy', sizes={{'train': 100000}}, workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    place = tmp_path / "moving_shapes" / "easy"
    deadline = time.monotonic() + 60
    while not list(place.glob("incomplete.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(place.glob("incomplete.*"))
    assert not (place / "1.0.0").exists()
    builder = build(tmp_path, "easy", sizes={"train": 4}, workers=1)
    assert [path.name for path in place.iterdir()] == ["1.0.0"]
    assert len(builder.as_data_source("train")) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line(tmp_path, workers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=r"easy: cannot be written \(File too large\)"):
            build(tmp_path, "easy", sizes={"train": 70}, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seconds", [0, 0.8], ids=["starting", "rendering"])
def test_a_killed_renderer_ends_the_build(tmp_path, capfd, seconds):
    def kill():
        while not (renderers := multiprocessing.active_children()):
            time.sleep(0.05)
        time.sleep(seconds)
        os.kill(renderers[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DataError, match="easy: a rendering process was killed"):
        build(tmp_path, "easy", sizes={"train": 100_000}, workers=2)
    killer.join()
    assert not multiprocessing.active_children()
    assert not capfd.readouterr().err  # of the pool's thread


def test_progress_on_a_terminal_and_elsewhere(tmp_path):
    with (tmp_path / "log").open("w") as file:
        build(tmp_path / "plain", "easy", sizes={"image": 3}, workers=1, console=Console(file=file))
        build(
            tmp_path / "live",
            "easy",
            sizes={"image": 3},
            workers=1,
            console=Console(file=file, force_terminal=True),
        )
    words = Path(tmp_path / "log").read_text()
    assert words.count("moving_shapes/easy image: 3 records") == 2
    assert "100%" in words


def test_default_sizes_are_for_all_splits(tmp_path):
    for config in ("easy", "hard"):
        assert list(MovingShapes(config=config, data_dir=str(tmp_path)).sizes) == list(
            records.SPLITS
        )
