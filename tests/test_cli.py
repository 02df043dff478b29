"""The console command as a user sees it: help, misuse, and one message per mistake."""

import io
import subprocess
import sys

import pytest

from elva_jax.cli import COMMANDS, _parser, main
from elva_jax.commands import convert, generate
from elva_jax.errors import DataError
from elva_jax.hf import export, import_checkpoint

ASK = ["--checkpoint", "x", "--video", "y", "--prompt", "?"]
PAIR = ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "0"]
TASK = ["--checkpoint", "x", "--tasks", "mme", "--data-root", "."]
HALF = ["--merging-profile", "half=merge_ratios=0.5"]


def run(capsys, *words):
    try:
        status = main(list(words))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["evaluate"],
        ["generate"],
        ["chat"],
        ["data"],
        ["data", "build"],
        ["data", "inspect"],
        ["data", "show"],
        ["recaption"],
    ],
)
def test_help_shows_every_option(capsys, words):
    status, out, err = run(capsys, *words, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: elva")
    if words and words != ["data"]:
        assert "example" in out or words[0] == "data"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "COMMAND"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["evaluate", "--chekpoint", "x"], 2, "--checkpoint"),
        (["evaluate", "--checkpoint", "x", "--speed"], 2, "unrecognized option: --speed"),
        (["evaluate", "--checkpoint", "x", "--limit", "0"], 2, "must be at least 1"),
        (["generate", "--checkpoint", "x", "--video", "y"], 2, "--prompt"),
        (
            ["generate", *ASK, "--frames", "4", "--low-edge", "112"],
            2,
            "--frames does not go together with hybrid resolution",
        ),
        (["generate", *ASK, "--high-frames", "-1"], 2, "cannot be negative, got -1"),
        (["generate", *ASK, "--top-p", "0.5"], 2, "--top-p counts where tokens are drawn"),
        (["chat", *ASK[:2], "--seed", "3"], 2, "--seed counts where tokens are drawn"),
        (["chat", *ASK[:2], "--merge-map-layers", "all"], 2, "needs --save-merge-map"),
        (["chat", *ASK[:2], "--frames", "8"], 2, "--frames needs --video"),
        (["generate", *ASK, *PAIR], 2, "2 processes (flags) would each do all of it; give --mesh"),
        (["generate", *ASK, *PAIR[:4]], 2, "--process-id (or ELVA_PROCESS_ID): not given"),
        (["evaluate", *ASK[:2], *PAIR], 2, "2 processes (flags) would each do all of it; give"),
        (["evaluate", *ASK[:2], *PAIR, "--distributed", "off"], 2, "--coordinator means nothing"),
        (["evaluate", *ASK[:2], "--local-devices", "1"], 2, "--local-devices: this process is"),
        (
            ["generate", *ASK[:2], "--local-devices", "1", "--input", "x", "--output", "y"],
            2,
            "only",
        ),
        (
            ["evaluate", *ASK[:2], *PAIR, "--heartbeat-timeout", "9", "--data", "x.json"],
            2,
            "--heartbeat-timeout needs --one-mesh",
        ),
        (["evaluate", *ASK[:2], "--html-frames", "9"], 2, "--html-frames needs --html"),
        (
            ["evaluate", "--compare", "a", "b", "--csv", "c"],
            2,
            "--csv means nothing with --compare",
        ),
        (["evaluate", "--compare", "a", "b", "--no-merging"], 2, "--no-merging means nothing"),
        (["evaluate", "--show", "a", *ASK[:2]], 2, "--checkpoint means nothing with --show"),
        (["evaluate", *TASK, "--data", "moving_shapes/hard"], 2, "--data and --tasks are asked"),
        (["evaluate", *TASK, "--no-baselines"], 2, "--no-baselines is for --data NAME"),
        (["evaluate", *ASK[:2], "--data", "x.json", "--split", "val"], 2, "--split is for --data"),
        (["generate", *ASK, "--top-p", "0"], 2, "--top-p: must be above 0"),
        (["generate", *ASK, "--temperature", "-1"], 2, "--temperature: cannot be negative"),
        (["generate", *ASK, "--merging", "half"], 2, "NAME of a --merging-profile, got half"),
        (["generate", *ASK, *HALF, "--merging", "Half"], 2, "must be one of half, got Half"),
        (["generate", *ASK, *HALF], 2, "--merging-profile: choose one with --merging NAME"),
        (["generate", *ASK, *HALF, *HALF], 2, "--merging-profile half: is there twice"),
        (["chat", "--checkpoint", "x", "--merging", "a", "--no-merging"], 2, "not allowed with"),
        (["chat", "--video", "x"], 2, "--checkpoint"),
        (["generate", *ASK, "--high-policy", "middle"], 2, "invalid choice: 'middle' (choose from"),
        (
            ["evaluate", "--checkpoint", "x", "--frames", "4", "--high-frames", "2"],
            2,
            "--frames does not go together",
        ),
        (
            ["train", "--config", "nowhere.py", "--workdir", "w"],
            2,
            "nowhere.py: no such config file",
        ),
        (
            ["data", "build", "moving_shapes/eazy"],
            2,
            "there are moving_shapes/easy and moving_shapes/hard",
        ),
    ],
)
def test_misuse_is_explained_in_one_line(capsys, words, status, message):
    got, out, err = run(capsys, *words)
    assert got == status
    assert message in err
    assert "Traceback" not in err + out


def test_a_config_mistake_names_the_key(capsys, config_dir, tmp_path):
    status, _, err = run(
        capsys,
        "train",
        "--config",
        f"{config_dir}/tiny.py",
        "--workdir",
        str(tmp_path),
        "--config.sed=1",
    )
    assert status == 2
    assert err == "elva train: sed: no such key 'sed'; did you mean seed?\n"
    assert not list(tmp_path.iterdir())


def test_missing_data_checkpoint_and_video_are_one_line(capsys, config_dir, tmp_path):
    train = [
        "train",
        "--config",
        f"{config_dir}/tiny.py:smoke",
        "--workdir",
        str(tmp_path / "run"),
        f"--config.data_dir={tmp_path / 'none'}",
    ]
    for words, part in (
        (train, "elva data build"),
        (["evaluate", "--checkpoint", str(tmp_path / "none")], str(tmp_path / "none")),
        (
            [
                "generate",
                "--checkpoint",
                str(tmp_path / "none"),
                "--video",
                "x.mp4",
                "--prompt",
                "?",
            ],
            str(tmp_path / "none"),
        ),
        (
            [
                "data",
                "show",
                "moving_shapes/easy",
                "--data-dir",
                str(tmp_path),
                "--out",
                str(tmp_path / "o"),
            ],
            "elva data build",
        ),
    ):
        status, _, err = run(capsys, *words)
        assert status == 1, err
        assert part in err
        assert err.count("\n") == 1


def test_print_config_shows_overrides_without_a_workdir(capsys, config_dir):
    status, out, _ = run(
        capsys, "train", "--config", f"{config_dir}/tiny.py", "--print-config", "--config.seed=41"
    )
    assert status == 0
    assert "seed: 41" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_is_what_their_modules_register(name):
    assert name in _parser(name)._subparsers._group_actions[0].choices


def test_convert_offers_the_dtypes_that_import_and_export_take():
    assert convert.DTYPES == import_checkpoint.DTYPES
    assert convert.DTYPES[1:] == tuple(export.DTYPES)


@pytest.mark.parametrize("words", [["--help"], ["convert", "import", "--help"]])
def test_help_imports_no_framework(words):
    code = (
        "import sys, elva_jax.cli\n"
        f"try: elva_jax.cli.main({words})\n"
        "except SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'jax', 'flax', 'transformers', 'grain')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_a_question_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(generate, "LONGEST", 8)
    monkeypatch.setattr("sys.stdin", io.StringIO("1234567\n\n7654321\n123456789"))
    lines = generate._lines()
    assert [next(lines), next(lines)] == ["1234567", "7654321"]
    with pytest.raises(DataError, match="a question has more than 8 characters"):
        next(lines)
