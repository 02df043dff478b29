"""A journal whose disk is full."""

import pytest

from elva_jax.inference.batches.journal import Head, Journal
from elva_jax.utils.failures import explain


def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path):
    path, head = tmp_path / "answers.jsonl", Head(fields={"settings": {}}, of="test", way_out="…")
    journal = Journal(path, head)
    journal.append([{"key": "1"}])
    content = path.read_bytes()
    assert content.count(b"\n") == 2
    journal._file.close()
    journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        journal.append([{"key": "2"}])
    assert explain(error.value).startswith(f"{path}: No space left on device; free some space")
    journal.close()  # does not try again
    again = Journal(path, head)
    again.append([{"key": "3" * 70_000}])
    again.close()
    assert path.read_bytes() == content + b'{"key": "' + b"3" * 70_000 + b'"}\n'
