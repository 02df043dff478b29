"""The plan of a build, fixed before the first record is read.

Every host and every restart makes the same plan, and refuses to continue a different one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.utils import read
from elva_jax.utils.files import write_atomic

VERSION = "1.0.0"  # of the record format; also the folder that TFDS looks for
END = 2**20  # bytes read at either end of a file that is not text
TEXT = (".json", ".jsonl", ".csv")  # files whose whole content goes into the fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One split of a data set, cut into shards of consecutive records."""

    data_dir: Path
    name: str
    split: str
    records: int  # of the source
    shards: int  # one file each
    settings: dict[str, Any]  # JSON-able; everything that the bytes of the files depend on

    @property
    def folder(self) -> Path:
        """The folder in which TFDS expects the files."""
        return self.data_dir / self.name / VERSION

    @property
    def state(self) -> Path:
        """The folder of the plan and of the entries of finished shards."""
        return self.folder / "build" / self.split

    @property
    def digest(self) -> str:
        """Identifies the plan: SHA-256 of its settings."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def part(self, shard: int) -> range:
        """The records of the source that go into a shard."""
        return range(shard * self.records // self.shards, (shard + 1) * self.records // self.shards)

    def of_host(self, host: int, hosts: int) -> range:
        """The shards that one of several hosts builds.

        Raises:
          ConfigError: there are more hosts than shards.
        """
        if hosts > self.shards:
            files = f"there are only {self.shards} files to build"
            raise ConfigError(f"--shard {host}/{hosts}: {files}; lower --shard-size")
        return range(host * self.shards // hosts, (host + 1) * self.shards // hosts)

    def file(self, shard: int) -> Path:
        """The file of a shard, named as TFDS names it."""
        place = f"{shard:05d}-of-{self.shards:05d}"
        return self.folder / f"{self.name}-{self.split}.array_record-{place}"

    def entry(self, shard: int) -> Path:
        """The file that records that a shard is finished, with its statistics."""
        return self.state / f"{shard:05d}.json"

    def begin(self) -> None:
        """Stores the plan, or compares it with the stored one.

        Raises:
          DataError: the folder holds another data set or another plan.
        """
        path = self.state / "plan.json"
        if not path.exists():
            if (self.folder / "dataset_info.json").exists() and not self.state.parent.exists():
                raise DataError(
                    f"{self.folder}: holds a data set that was not built from a source; "
                    "choose another --name"
                )
            self.state.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(self._content(), indent=1) + "\n")
        stored = read_json(path)
        for key, value in self._content().items():
            if stored.get(key) != value:
                raise DataError(
                    f"{self.folder}: split '{self.split}' was started with "
                    f"{key} = {_short(stored.get(key))}, not {_short(value)}; restore that "
                    f"setting, choose another --name, or delete {self.state} to start over"
                )

    def _content(self) -> dict[str, Any]:
        return {**self.settings, "records": self.records, "shards": self.shards}


def fingerprint(files: Iterable[Path]) -> str:
    """Identifies the content of a source.

    Hashes the names and sizes of its files, all bytes of text files, and both ends of others.
    """
    digest = hashlib.sha256()
    for path in files:
        with read.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size}\n".encode())
            if path.suffix.lower() in TEXT:
                while chunk := file.read(END):
                    digest.update(chunk)
            else:
                digest.update(file.read(END))
                file.seek(max(size - END, 0))
                digest.update(file.read(END))
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a plan, an entry or a manifest.

    Raises:
      DataError: it is missing or damaged.
    """
    return read.read_json(path, DataError, remedy="delete it to build it again")


def ranges(numbers: Sequence[int]) -> str:
    """Formats increasing numbers as ranges: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
