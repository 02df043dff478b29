"""Tests of folders of tensors against the safetensors library, and of invalid folders."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from elva_jax.errors import ConvertError
from elva_jax.hf import checksums, safetensors_io
from elva_jax.hf.safetensors_io import all_finite
from elva_jax.hf.tensor_store import open_store
from elva_jax.hf.write_store import write_store

DTYPES = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.float64,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
]


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    out = {
        f"group.{i}.weight": rng.normal(0, 3, (5, i + 1)).astype(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    return out | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}


@pytest.fixture
def folder(tmp_path):
    """A folder with one file without checksums: a header, then 24 bytes of a and 16 of b."""
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float32),
    }
    write_store(tmp_path / "model", values.items(), files={"config.json": b"{}"})
    (tmp_path / "model" / "checksums.json").unlink()
    return tmp_path / "model"


def rewrite(folder, change):
    """Changes the header of the only file in a folder."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize("shard_bytes", [10**9, 60])
def test_written_files_are_read_by_us_and_by_safetensors(tmp_path, shard_bytes):
    wanted = tensors()
    write_store(
        tmp_path / "m",
        iter(wanted.items()),
        shard_bytes=shard_bytes,
        files={"config.json": b'{"key": 1}'},
        metadata={"k": "v"},
    )
    opened = open_store(tmp_path / "m")
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes > 1000 else len(files) > 3
    theirs = {
        name: value for file in files for name, value in safetensors.torch.load_file(file).items()
    }
    assert opened.config == {"key": 1}
    assert set(opened.names()) == set(theirs) == set(wanted)
    for name, value in wanted.items():
        assert (opened.shape(name), opened.dtype(name)) == (value.shape, value.dtype)
        np.testing.assert_array_equal(opened.read(name), value)
        opened.release(name)
        np.testing.assert_array_equal(opened.read(name), value)
        np.testing.assert_array_equal(theirs[name].double().numpy(), value.astype(np.float64))
    assert opened.nbytes == sum(value.nbytes for value in wanted.values())
    with safetensors.safe_open(files[0], "np") as file:
        assert file.metadata() == {"k": "v"}


def test_files_written_by_safetensors_are_read(tmp_path):
    wanted = {
        name: value for name, value in tensors(1).items() if value.dtype != ml_dtypes.bfloat16
    }
    safetensors.numpy.save_file(wanted, tmp_path / "model.safetensors")
    opened = open_store(tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(opened.read(name), value)


def test_index_has_the_format_of_transformers(tmp_path):
    write_store(tmp_path / "m", tensors().items(), shard_bytes=100)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors().values())
    count = len(set(index["weight_map"].values()))
    assert set(index["weight_map"].values()) == {
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    }
    sums = json.loads((tmp_path / "m" / "checksums.json").read_text())
    files = {name: (tmp_path / "m" / name).read_bytes() for name in index["weight_map"].values()}
    assert sums == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "crc32": [zlib.crc32(content)]}
        for name, content in files.items()
    }


def test_truncated_file_is_refused(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for size, message in (
        (len(content) - 5, "truncated, b ends at byte"),
        (20, "not a complete safetensors file"),
        (4, "not a complete"),
    ):
        file.write_bytes(content[:size])
        with pytest.raises(ConvertError, match=rf"model\.safetensors.*{message}"):
            open_store(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["b"].update(data_offsets=[20, 36]), "b overlaps the tensor before it"),
        (lambda h: h["b"].update(data_offsets=[28, 44]), "b leaves a gap before it"),
        (lambda h: h["b"].update(shape=[5]), r"b takes 16 bytes, but F32\[5\] needs 20"),
        (lambda h: h["b"].update(dtype="BF16"), r"b takes 16 bytes, but BF16\[4\] needs 8"),
        (lambda h: h["b"].update(dtype="F8_E4M3"), "b has dtype F8_E4M3"),
        (lambda h: h.pop("b"), "16 bytes after the last tensor"),
        (lambda h: h["b"].pop("shape"), "malformed"),
        (lambda h: h["b"].update(shape=[-4]), "malformed"),
        (lambda h: h.update(b=3), "malformed"),
    ],
)
def test_invalid_header_is_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ConvertError, match=rf"model\.safetensors.*{message}"):
        open_store(folder)


def test_random_header_is_refused(folder):
    (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"\xff" * 16)
    with pytest.raises(ConvertError, match="malformed"):
        open_store(folder)


def test_index_that_contradicts_its_files_is_refused(tmp_path):
    write_store(tmp_path / "m", tensors().items(), shard_bytes=100)
    file = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(file.read_text())

    def refused(change, message):
        changed = json.loads(json.dumps(index))
        change(changed["weight_map"])
        file.write_text(json.dumps(changed))
        with pytest.raises(ConvertError, match=message):
            open_store(tmp_path / "m")

    first = index["weight_map"]["scalar"]
    refused(lambda m: m.update(more=first), rf"{first} lacks more")
    refused(
        lambda m: m.pop("scalar"), rf"{first} holds scalar, which the index does not place there"
    )
    refused(lambda m: m.update(more="absent.safetensors"), r"absent\.safetensors: missing")
    refused(lambda m: m.update(more="../x.safetensors"), "not a file beside it")
    refused(lambda m: m.clear(), "no weight_map")
    file.write_text("not json")
    with pytest.raises(ConvertError, match="is not JSON"):
        open_store(tmp_path / "m")


@pytest.mark.parametrize("bit", [0, 6])
@pytest.mark.parametrize("kind", ["pieces", "sha256"])
def test_a_flipped_bit_breaks_the_checksum(tmp_path, monkeypatch, bit, kind):
    """By pieces, as we write them, and by SHA-256 alone, as older folders have it."""
    monkeypatch.setattr(checksums, "PIECE", 100)
    write_store(tmp_path / "m", tensors().items())
    file, sums = tmp_path / "m" / "model.safetensors", tmp_path / "m" / "checksums.json"
    content = bytearray(file.read_bytes())
    record = json.loads(sums.read_text())[file.name]
    assert record["crc32"] == [
        zlib.crc32(content[i : i + 100]) for i in range(0, len(content), 100)
    ]
    at = (len(content) - 30) // 100 * 100
    words = f"damaged, bytes {at} to {at + 100} are not what was written"
    if kind == "sha256":
        sums.write_text(json.dumps({file.name: record["sha256"]}))
        words = "damaged, its sha256"
    open_store(tmp_path / "m")
    content[-30] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(ConvertError, match=rf"model\.safetensors: {words}"):
        open_store(tmp_path / "m")


@pytest.mark.parametrize(
    ("crc32", "words"),
    [
        (None, r"checksums\.json: lists no crc32 of model\.safetensors"),
        ([], r"model\.safetensors: has 1 pieces of 64 MiB, .* lists 0"),
        (["0"], r"model\.safetensors: damaged, bytes 0 to "),
    ],
)
def test_checksums_that_cannot_be_are_refused(tmp_path, crc32, words):
    write_store(tmp_path / "m", tensors().items())
    record = {"model.safetensors": {"crc32": crc32}}
    (tmp_path / "m" / "checksums.json").write_text(json.dumps(record))
    with pytest.raises(ConvertError, match=words):
        open_store(tmp_path / "m")


def test_the_hubs_cache_names_files_by_their_checksum(tmp_path, folder):
    """snapshots/<commit>/model.safetensors links to blobs/<sha256>."""
    content = (folder / "model.safetensors").read_bytes()
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    blob = blobs / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(blob)
    assert open_store(snapshot).names() == ("a", "b")
    blob.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ConvertError, match="damaged"):
        open_store(snapshot)


def test_values_that_are_not_finite_are_refused(folder):
    opened = open_store(folder)
    opened.refuse_non_finite("a", opened.read("a"))
    with pytest.raises(
        ConvertError, match=r"model\.safetensors: a holds values that are not finite"
    ):
        opened.refuse_non_finite("a", np.array([1.0, np.nan]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_checks_every_chunk(monkeypatch, dtype, bad):
    monkeypatch.setattr(safetensors_io, "BLOCK", 64)
    values = np.zeros((7, 11, 3), dtype)
    values[0, 0, 0] = np.finfo(np.float16).max  # the largest finite value
    assert all_finite(values)
    assert all_finite(values.T)
    values[6, 10, 2] = bad
    assert not all_finite(values)
    assert not all_finite(values.T)
    assert all_finite(np.array(1.0, dtype))
    assert all_finite(np.arange(3))


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(ConvertError, match=r"no model\.safetensors"):
        open_store(tmp_path)
    with pytest.raises(ConvertError, match="no such folder, nor a hub name"):
        open_store(tmp_path / "nowhere")
    for name in ("one.safetensors", "two.safetensors"):
        safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    with pytest.raises(ConvertError, match="holds 2 files of weights, but no"):
        open_store(tmp_path)


def test_hub_without_network_gives_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = {}

    def absent(name, allow_patterns):
        asked[name] = allow_patterns
        raise LocalEntryNotFoundError("no connection\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(
        ConvertError,
        match=r"^Some/Model-1: no such folder, and the hub could not provide it \(no connection\)",
    ) as caught:
        open_store("Some/Model-1")
    assert "\n" not in str(caught.value)
    assert "*.safetensors" in asked["Some/Model-1"]
    assert not any("bin" in pattern for pattern in asked["Some/Model-1"])


def test_pickle_needs_permission(tmp_path):
    values = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.arange(6).reshape(2, 3).T,
    }
    torch.save({"state_dict": values}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ConvertError, match=r"pytorch_model\.bin: a pickle can run code.*--allow-pickle"
    ):
        open_store(tmp_path)
    opened = open_store(tmp_path, allow_pickle=True)
    assert opened.dtype("b") == ml_dtypes.bfloat16
    for name, value in values.items():
        np.testing.assert_array_equal(opened.read(name).astype(np.float32), value.float().numpy())


class Malice:
    def __reduce__(self):
        return os.mkdir, ("/tmp/elva_jax_test_malice",)


def test_pickle_never_runs_code(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ConvertError, match=r"model\.pt: holds more than tensors"):
        open_store(tmp_path, allow_pickle=True)
    torch.save({"a": Malice()}, tmp_path / "model.pt")
    with pytest.raises(ConvertError, match=r"model\.pt: holds more than tensors"):
        open_store(tmp_path, allow_pickle=True)
    torch.save([torch.ones(2)], tmp_path / "model.pt")
    with pytest.raises(ConvertError, match="not a dictionary of tensors"):
        open_store(tmp_path, allow_pickle=True)
    assert not os.path.exists("/tmp/elva_jax_test_malice")


def test_invalid_tensors_are_not_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConvertError, match="exists already"):
        write_store(tmp_path / "full", tensors().items())
    with pytest.raises(ConvertError, match="a: given twice"):
        write_store(tmp_path / "m", [("a", np.ones(2, np.float32))] * 2)
    with pytest.raises(ConvertError, match="a: has dtype complex64"):
        write_store(tmp_path / "m", [("a", np.ones(2, np.complex64))])
    with pytest.raises(ConvertError, match="no tensors"):
        write_store(tmp_path / "m", [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]


def test_empty_folder_is_used(tmp_path):
    (tmp_path / "m").mkdir()
    write_store(tmp_path / "m", tensors().items())
    assert open_store(tmp_path / "m").names()


KILLED = """
import signal, sys, time, numpy as np
from elva_jax.hf.write_store import write_store
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell passes it on ignored

def tensors():
    yield "a", np.ones(1000, np.float32)
    print("half", flush=True)
    time.sleep(60)
write_store(sys.argv[1], tensors(), shard_bytes=100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_write_leaves_nothing_and_can_be_repeated(tmp_path, how):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"half\n"
        time.sleep(0.1)
        process.send_signal(how)
        process.wait()
    assert not (tmp_path / "m").exists()
    write_store(tmp_path / "m", tensors().items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_two_processes_never_write_one_folder(tmp_path):
    """The second is refused while the first writes, and changes nothing of it."""

    def slow():
        yield "a", np.ones(3, np.float32)
        code = "import sys, numpy as np; from elva_jax.hf.write_store import write_store;"
        code += "write_store(sys.argv[1], [('a', np.zeros(3, np.float32))])"
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "m"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert f"m.tmp: is in use by process {os.getpid()} on " in done.stderr
        yield "b", np.ones(3, np.float32)

    write_store(tmp_path / "m", slow())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert open_store(tmp_path / "m").read("a").tolist() == [1, 1, 1]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    code = "import os, sys, numpy as np; from elva_jax.hf.write_store import write_store;"
    code += "write_store(sys.argv[1], (os.kill(os.getpid(), 9) for _ in 'a'))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m"], check=False)
    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".m.tmp"]
    write_store(tmp_path / "m", [("a", np.ones(3, np.float32))])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
