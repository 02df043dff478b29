"""Opening what is named: regular files only, of bounded size and depth, and one line otherwise."""

import contextlib
import json
import math
import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import CheckpointError, ConfigError, DataError
from elva_jax.utils import read


def make(kind, folder):
    """A path of a kind that is no sound file, and a word of the message about it."""
    path = folder / "x.json"
    if kind == "missing":
        return path, "No such file"
    if kind == "long":
        return folder / ("n" * 300), "File name too long"
    if kind == "null":
        return f"{folder}/a\0b", "null character"
    if kind == "newline":
        return folder / "a\nb", r"a\nb"
    if kind == "surrogate":
        return folder / "a\udcff", "No such file"
    if kind == "below a file":
        path.write_text("")
        return path / "y", "a part of the path is a file"
    if kind == "folder":
        return folder, "is a folder"
    if kind == "pipe":
        os.mkfifo(path)
        return path, "is a named pipe"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        return path, "is a socket"
    if kind == "device":
        return "/dev/zero", "is a device"
    if kind == "loop":
        path.symlink_to(path.name)
        return path, "circle of links"
    raise AssertionError(kind)


IRREGULAR = ("folder", "pipe", "socket", "device")
ABSENT = ("missing", "long", "null", "newline", "surrogate", "below a file", "loop")


@pytest.mark.parametrize("kind", [*IRREGULAR, *ABSENT])
def test_what_is_no_regular_file_is_refused_in_one_line(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path, word = make(kind, tmp_path)

    def lines(*arguments):
        return list(read.read_lines(*arguments))

    for reader in (read.read_bytes, read.read_text, read.read_json, lines):
        with pytest.raises(CheckpointError) as error:
            reader(path, CheckpointError)
        assert word in str(error.value)
        assert len(str(error.value).splitlines()) == 1


DAMAGED = {
    "empty": b"",
    "binary": bytes(range(256)),
    "cut": b'{"a": [1, 2',
    "deep": b"[" * 100_000,
    "deep and whole": b'{"a":' * 300 + b"1" + b"}" * 300,
    "huge number": b'{"a": ' + b"9" * 5000 + b"}",
    "null bytes": b"\0" * 100,
    "array": b"[]",
    "text": b'"x"',
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_names_the_file(tmp_path, name):
    path = tmp_path / "x.json"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as error:
        read.read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": "ä"}', encoding="utf-8-sig")
    assert read.read_json(path) == {"a": "ä"}


FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_sound_json_is_read_as_the_standard_library_reads_it(value):
    text = json.dumps(value)
    assert read.parse_json(text) == read.parse_json(text.encode()) == json.loads(text)


@given(st.binary())
def test_any_bytes_are_a_value_or_one_value_error(content):
    with contextlib.suppress(ValueError):  # any other error fails the test
        read.parse_json(content)


@pytest.mark.parametrize(("levels", "sound"), [(read.DEEPEST, True), (read.DEEPEST + 1, False)])
def test_depth_is_bounded(levels, sound):
    text = "[" * levels + "]" * levels
    if sound:
        assert read.parse_json(text) == json.loads(text)
    else:
        with pytest.raises(ValueError, match="nested deeper than"):
            read.parse_json(text)


def test_size_is_bounded_and_the_limit_is_named(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(20 * 2**30)  # sparse: it takes no space
    with pytest.raises(DataError, match="more than 1 MiB, the limit"):
        read.read_bytes(path, limit=2**20)
    with pytest.raises(DataError, match="line 1 has more than 1 MiB"):
        next(read.read_lines(path, limit=2**20))


@pytest.mark.parametrize("kind", [*IRREGULAR, "long", "null", "below a file", "loop"])
def test_an_impossible_output_is_refused_before_work(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = make(kind, tmp_path)
    with pytest.raises(ConfigError, match=r"^--json .*") as error:
        read.check_output(path, "--json")
    assert len(str(error.value).splitlines()) == 1
    if kind != "folder":
        with pytest.raises(ConfigError, match=r"^--out .*cannot be written"):
            read.check_output_folder(path, "--out")


def test_checking_an_output_changes_nothing(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "deep" / "new.json"
    old.write_text("kept")
    assert read.check_output(old) == old
    assert read.check_output(new) == new
    assert read.check_output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert old.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1.5E+999"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, number):
    file = tmp_path / "config.json"
    file.write_text(f'{{"a": [{{"b": {number}}}]}}')
    with pytest.raises(DataError, match=f"config.json: .*the number {re.escape(number)} is not"):
        read.read_json(file)
    assert math.isfinite(read.parse_json(file.read_text(), finite=False)["a"][0]["b"]) is False


@pytest.mark.parametrize("sign", ["", "-"])
def test_whole_numbers_that_no_float_holds_are_refused(sign):
    assert float(read.parse_json(sign + "9" * 299)) == float(sign + "9" * 299)
    for digits in (301, 5000):  # more than 4300 digits are beyond what Python converts
        with pytest.raises(ValueError, match=f"the number {sign}99.*… has more than 300 digits$"):
            read.parse_json(f"[{sign}{'9' * digits}]")


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    st.sampled_from(["{}", '{{"x": {}}}', '[1, {{"y": [{}]}}]']),
)
def test_keys_that_occur_twice_are_refused(keys, around):
    body = ", ".join(f'"{key}": {number}' for number, key in enumerate(keys))
    text = around.replace("{{", "{").replace("}}", "}").replace("{}", f"{{{body}}}")
    if len(set(keys)) == len(keys):
        assert read.parse_json(text) == json.loads(text)
        return
    with pytest.raises(ValueError, match="occurs twice in an object"):
        read.parse_json(text)


def test_a_settings_file_with_two_values_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 8, "hidden_size": 16}')
    with pytest.raises(ConfigError, match=r"config\.json: .*'hidden_size' occurs twice"):
        read.read_json(path, ConfigError)
