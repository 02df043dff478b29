"""Tests of `elva data build`: same examples as the source, shards, several hosts, verification."""

import csv
import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from elva_jax.config import schema
from elva_jax.data import sources
from elva_jax.errors import ElvaError
from elva_jax.tools.datasets.build import shard, start


def with_bytes(example):
    """Replaces the paths of an example's media by the bytes of the files."""
    media = [
        m
        if isinstance(m.source, bytes)
        else dataclasses.replace(m, source=Path(m.source).read_bytes())
        for m in example.media
    ]
    return dataclasses.replace(example, media=tuple(media))


def readable(examples):
    found = []
    for index in range(len(examples)):
        try:
            found.append(with_bytes(examples[index]))
        except (ElvaError, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The data set that one process built from the source, in four files."""
    from elva_jax import cli

    folder = tmp_path_factory.mktemp("built")
    options = ["--name", "notes", "--shard-size", "5", "--workers", "1"]
    assert cli.main(["data", "build", str(source), "--data-dir", str(folder), *options]) == 0
    return folder


def test_built_data_set_has_the_examples_of_its_source(source, built, made):
    examples = sources.open_examples(schema.source("notes", "train"), built)
    assert len(examples) == len(made.good()) == 11
    direct = {
        example.key: example
        for example in readable(sources.open_examples(schema.source(str(source)), built))
    }
    for example in examples:
        assert example == direct[example.key]
    assert [example.key for example in examples] == [
        key for key in direct if key in {e.key for e in examples}
    ]
    assert [len(example.media) for example in examples][-3:] == [3, 0, 2]
    assert examples[8].media[2].kind == "video"
    assert examples[10].system == "Be brief."


def test_built_data_set_opens_in_tfds(built):
    assert len(tfds.data_source("notes", split="train", data_dir=built)) == 11
    part = tfds.data_source("notes", split="train[2:4]", data_dir=built)
    assert [record["key"] for record in part] == [b"notes.jsonl:5", b"notes.jsonl:7"]
    info = tfds.builder("notes", data_dir=built).info.splits["train"]
    assert info.num_shards == 4
    assert sum(info.shard_lengths) == 11
    assert (
        sorted(path.name for path in (built / "notes/1.0.0").glob("*array_record*"))[0]
        == "notes-train.array_record-00000-of-00004"
    )


def test_shards_equal_those_that_tfds_writes(source, built, tmp_path):
    plan, preparation = start.begin(
        start.BuildOptions(
            source=str(source), name="notes", data_dir=tmp_path / "state", shard_size=5
        )
    )
    elsewhere = dataclasses.replace(plan, data_dir=tmp_path / "tfds")
    builder = shard.builder(elsewhere, preparation)
    builder.download_and_prepare()
    ours, theirs = tfds.builder("notes", data_dir=built), builder
    assert {path.name for path in ours.data_path.glob("*")} >= {
        path.name for path in theirs.data_path.glob("*")
    }
    assert ours.info.splits["train"].shard_lengths == theirs.info.splits["train"].shard_lengths
    assert list(ours.as_data_source("train")) == list(theirs.as_data_source("train"))


def test_the_bytes_do_not_depend_on_processes_hosts_or_time(
    source, built, tmp_path, elva, contents
):
    arguments = ["build", source, "--name", "notes", "--data-dir", tmp_path, "--shard-size", "5"]
    status, out, _ = elva(*arguments, "--shard", "1/2", "--workers", "2")
    assert status == 0
    assert "2 of 4 files of 'train' are built; still missing: 0-1" in out
    with pytest.raises(ElvaError, match="no such data set"):
        sources.open_examples(schema.source("notes", "train"), tmp_path)
    status, out, _ = elva(*arguments, "--shard", "0/2", "--workers", "1")
    assert "train: 11 records in 4 files" in out
    assert contents(tmp_path / "notes") == contents(built / "notes")


def test_rejected_records_are_listed_with_their_reasons(source, built, made):
    folder = built / "notes/1.0.0"
    lines = [
        json.loads(line) for line in (folder / "rejected-train.jsonl").read_text().splitlines()
    ]
    assert [line["key"] for line in lines] == [f"notes.jsonl:{2 * k + 2}" for k in range(8)] + [
        "notes.jsonl:20"
    ]
    assert [line["record"] for line in lines] == [2 * k + 1 for k in range(8)] + [19]
    for line, (_, reason) in zip(lines, made.bad.values(), strict=False):
        assert line["reason"].startswith(reason), line
    assert Path(lines[0]["medium"]) == source.parent / "clips" / "none.mp4"
    manifest = json.loads((folder / "manifest-train.json").read_text())
    assert sum(entry["records"] for entry in manifest["statistics"]["rejected"].values()) == 9
    assert manifest["statistics"]["rejected"]["a question has no answer"] == {
        "records": 1,
        "first": "notes.jsonl:10",
    }
    assert manifest["source"]["records"] == 20


def test_manifest_counts_records_and_tokens(built):
    manifest = json.loads((built / "notes/1.0.0/manifest-train.json").read_text())
    found = manifest["statistics"]
    assert found["records"] == 11
    assert found["media"] == {"video": 9, "image": 4}
    assert found["resolutions"] == {"32x64": 5, "48x32": 4, "40x24": 2, "100x60": 2}
    frames = [*range(4, 12), 5]
    assert found["seconds"]["total"] == pytest.approx(sum(frames) / 6)
    assert (found["seconds"]["min"], found["seconds"]["max"]) == (
        pytest.approx(4 / 6),
        pytest.approx(11 / 6),
    )
    assert found["turns"]["total"] == 8 + 2 + 2 + 1
    # A 48 x 32 frame has 2 x 1 patches of 28 pixels, 32 x 64 has 1 x 2; plus <LINE>s and <FRAME>.
    upright, wide = 2 * 1 + 2 + 1, 1 * 2 + 1 + 1
    by_clip = [(upright if k % 2 else wide) * (4 + k) for k in range(8)]
    stills = (1 * 1 + 1 + 1) + (2 * 4 + 2 + 1)
    assert found["visual_tokens"]["total"] == sum(by_clip) + (stills + by_clip[1]) + stills
    assert [entry["records"] for entry in manifest["shards"]] == list(
        tfds.builder("notes", data_dir=built).info.splits["train"].shard_lengths
    )


def test_token_counts_equal_those_of_training(source, tmp_path, tokenizer, elva, config):
    from elva_jax.data.decode_example import ConversationDecoder
    from elva_jax.data.mixture import Mixture

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    status, _, err = elva(
        *("build", source, "--name", "counted", "--data-dir", tmp_path, "--workers", "1"),
        *(
            "--tokenizer",
            tmp_path / "tokenizer",
            "--frames",
            "3",
            "--edge",
            "48",
            "--patch-size",
            "16",
        ),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "counted/1.0.0/manifest-train.json").read_text())["statistics"]
    config.data_dir = str(tmp_path)
    data = config.stages.video.data
    data.mixture = {"all": schema.source("counted", "train")}
    data.update(seq_len=10_000, max_patches=1000, max_frames=100, system_prompt="")
    mixture = Mixture(config, "video")
    decoder = ConversationDecoder(mixture, config, config.stages.video, tokenizer)
    samples = [decoder((0, index), None) for index in range(len(mixture))]
    assert found["tokens"]["total"] == sum(sample.counts.tokens for sample in samples)
    assert found["tokens"]["max"] == max(sample.counts.tokens for sample in samples)
    assert found["text_tokens"]["total"] == sum(
        int((sample.layout.kind == 1).sum()) for sample in samples
    )


def test_other_kinds_of_sources_are_built(tmp_path, data_dir, made, elva):
    media = made.write_media(tmp_path / "media")
    with (media / "web.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["videoid", "name", "page_dir"],
                ["1", "A grey field, brightening", "clips"],
                ["9", "Nothing", "clips"],
            ]
        )
    with tarfile.open(media / "shards-0.tar", "w") as tar:
        for name, data in (
            ("k.mp4", made.video(3)),
            ("k.json", json.dumps(made.talk("<video> What?", "Grey.")).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    wanted = {
        "web": (media / "web.csv", 1),
        "shards": (media / "shards-*.tar", 1),
        "shapes": ("moving_shapes/small", 24),
    }
    for name, (path, number) in wanted.items():
        where = data_dir if name == "shapes" else tmp_path
        status, _, err = elva("build", path, "--name", name, "--data-dir", where, "--workers", "1")
        assert status == 0, err
        again = sources.open_examples(schema.source(name, "train"), where)
        direct = sources.open_examples(schema.source(str(path), "train"), where)
        assert len(again) == number
        assert list(again) == [with_bytes(example) for example in list(direct)[:number]]
    chosen = sources.open_examples(schema.source("shapes", "train", tasks=("choice",)), data_dir)
    assert {turn.task for example in chosen for turn in example.turns} == {"choice"}


def test_splits_share_a_data_set(source, built, tmp_path, elva):
    for split in ("train", "validation"):
        options = f"--name both --workers 1 --split {split}".split()
        assert elva("build", source, "--data-dir", tmp_path, *options)[0] == 0
    assert set(tfds.builder("both", data_dir=tmp_path).info.splits) == {"train", "validation"}
    one, two = (
        sources.open_examples(schema.source("both", split), tmp_path)
        for split in ("train", "validation")
    )
    assert list(one) == list(two)


def test_shards_without_usable_records_are_built(source, tmp_path, elva):
    options = ["--name", "fine", "--shard-size", "1", "--workers", "1"]
    status, out, err = elva("build", source, "--data-dir", tmp_path, *options)
    assert status == 0, err
    assert "11 records in 20 files" in out
    assert len(list(sources.open_examples(schema.source("fine", "train"), tmp_path))) == 11


def test_source_without_usable_records_is_refused(tmp_path, made, elva):
    (tmp_path / "bad.jsonl").write_text(
        "\n".join([json.dumps(made.talk("What?", "This.", video="none.mp4"))] * 3)
    )
    status, _, err = elva(
        "build", tmp_path / "bad.jsonl", "--name", "bad", "--data-dir", tmp_path, "--workers", "1"
    )
    assert status == 1
    assert err.endswith(
        "none of 3 records can be used: 3 x no such file or folder (first: bad.jsonl:1)\n"
    )
    assert not (tmp_path / "bad/1.0.0/features.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--longest-edge", "32"], "longest_edge = 0, not 32"),
        (["--shard-size", "4"], "shards = 4, not 5"),
        (["--frames", "8"], "tokens_at = "),
        (["--root", "ROOT"], 'root = "", not '),
    ],
)
def test_other_settings_are_refused(source, built, elva, contents, change, message):
    before = contents(built / "notes")
    change = [str(source.parent) if word == "ROOT" else word for word in change]
    if "--shard-size" not in change:
        change = [*change, "--shard-size", "5"]
    status, _, err = elva("build", source, "--name", "notes", "--data-dir", built, *change)
    assert status == 1
    assert f"split 'train' was started with {message}" in err
    assert err.count("\n") == 1
    assert contents(built / "notes") == before


def test_changed_source_is_refused(tmp_path, made, elva):
    made.write_media(tmp_path / "media")
    notes = tmp_path / "media" / "notes.jsonl"
    notes.write_text(json.dumps(made.good()[0]))
    arguments = ["build", notes, "--name", "notes", "--data-dir", tmp_path, "--workers", "1"]
    assert elva(*arguments)[0] == 0
    notes.write_text(json.dumps(made.good()[0]).replace("grey", "gray"))  # same length as before
    status, _, err = elva(*arguments)
    assert status == 1
    assert "was started with content = " in err


def test_flipped_byte_is_found_and_repaired(source, tmp_path, elva, contents):
    options = ["--name", "notes", "--shard-size", "5", "--workers", "1"]
    arguments = ["build", source, "--data-dir", tmp_path, *options]
    assert elva(*arguments)[0] == 0
    check = ["inspect", "notes", "--data-dir", tmp_path, "--verify"]
    assert elva(*check)[:2] == (0, "4 of 4 files are as they were built\n")
    before = contents(tmp_path / "notes")
    hurt = tmp_path / "notes/1.0.0/notes-train.array_record-00002-of-00004"
    data = bytearray(hurt.read_bytes())
    data[len(data) // 3] ^= 1
    hurt.write_bytes(data)
    status, out, _ = elva(*check)
    assert status == 1
    assert out.splitlines()[0] == f"{hurt.name}: its bytes have changed (SHA-256 differs)"
    hurt.write_bytes(data[:-1])
    assert elva(*check)[1].startswith(
        f"{hurt.name}: has {len(data) - 1:,} bytes, not {len(data):,}"
    )
    hurt.unlink()
    assert elva(*check)[1].startswith(f"{hurt.name}: is missing")
    assert elva(*arguments)[0] == 0
    assert contents(tmp_path / "notes") == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["SOURCE"], 2, "the following arguments are required: --name"),
        (["SOURCE", "--name", "Big Name"], 2, "--name Big Name: must be lower-case letters"),
        (["SOURCE", "--name", "moving_shapes"], 2, "that name is taken"),
        (["SOURCE", "--name", "x", "--split", "all"], 2, "--split all"),
        (["SOURCE", "--name", "x", "--shard", "2/2"], 2, "I counts from 0 to N-1, got 2/2"),
        (
            ["SOURCE", "--name", "x", "--shard", "0/9"],
            2,
            "--shard 0/9: there are only 1 files to build; lower --shard-size",
        ),
        (["SOURCE", "--name", "x", "--source-split", "a"], 2, "is a file, which has no splits"),
        (["SOURCE", "--name", "x", "--root", "/none"], 1, "/none: no such folder"),
        (["SOURCE", "--name", "x", "--tokenizer", "/none"], 1, "/none: no tokenizer there"),
        (
            ["SOURCE", "--name", "x", "--edge", "20"],
            2,
            "--edge 20: must hold at least one patch of 28",
        ),
        (["none.json", "--name", "x"], 1, "none.json: cannot be opened"),
        (["notes.parquet", "--name", "x"], 1, "notes.parquet: no reader for this data set"),
        (
            ["some_name", "--name", "x"],
            1,
            "no such data set; build it with `elva data build SOURCE --name some_name`",
        ),
        (
            ["moving_shapes/eazy"],
            2,
            "no such data set; there are moving_shapes/easy and moving_shapes/hard",
        ),
    ],
)
def test_misuse_is_explained_in_one_line(source, tmp_path, elva, words, status, message):
    words = [source if word == "SOURCE" else word for word in words]
    got, out, err = elva("build", *words, "--data-dir", tmp_path)
    assert got == status
    assert message in err
    assert "Traceback" not in err + out
    assert not (tmp_path / "x" / "1.0.0" / "dataset_info.json").exists()


def test_data_set_of_another_builder_is_not_overwritten(source, data_dir, tmp_path, elva):
    (tmp_path / "foreign/1.0.0").mkdir(parents=True)
    (tmp_path / "foreign/1.0.0/dataset_info.json").write_text("{}")
    status, _, err = elva("build", source, "--name", "foreign", "--data-dir", tmp_path)
    assert status == 1
    assert "holds a data set that was not built from a source; choose another --name" in err
