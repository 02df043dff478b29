"""What is to be built, settled before the first record is read: the same on every host and after every restart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elva_jax.errors import ConfigError, DataError

VERSION = "1.0.0"  # of the record format, and the folder that TFDS looks for
END = 2**20  # bytes read at either end of a file that is not text
TEXT = (".json", ".jsonl", ".csv")  # files that are read whole for the fingerprint


class Plan(NamedTuple):
    """One split of a data set, cut into shards of neighbouring records."""

    data_dir: Path
    name: str
    split: str
    records: int  # of the source
    shards: int  # files
    settings: dict[str, Any]  # JSON-able; what the bytes of the files depend on

    @property
    def folder(self) -> Path:
        """Where TFDS expects the files."""
        return self.data_dir / self.name / VERSION

    @property
    def state(self) -> Path:
        """Where the plan and the entries of finished shards are."""
        return self.folder / "build" / self.split

    @property
    def digest(self) -> str:
        """Names the plan: SHA-256 of its settings."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def part(self, shard: int) -> range:
        """The source's records that go into a shard."""
        return range(shard * self.records // self.shards, (shard + 1) * self.records // self.shards)

    def of_host(self, host: int, hosts: int) -> range:
        """The shards that one of several hosts builds.

        Raises:
          ConfigError: there are more hosts than shards.
        """
        if hosts > self.shards:
            raise ConfigError(
                f"--shard {host}/{hosts}: there are only {self.shards} files to build; lower --shard-size"
            )
        return range(host * self.shards // hosts, (host + 1) * self.shards // hosts)

    def file(self, shard: int) -> Path:
        """The file of a shard, named as TFDS does."""
        return (
            self.folder / f"{self.name}-{self.split}.array_record-{shard:05d}-of-{self.shards:05d}"
        )

    def entry(self, shard: int) -> Path:
        """The file that says that a shard is finished, and what is in it."""
        return self.state / f"{shard:05d}.json"

    def begin(self) -> None:
        """Writes the plan down, or finds that it is the one that was begun here.

        Raises:
          DataError: the folder holds something else.
        """
        path = self.state / "plan.json"
        if not path.exists():
            if (self.folder / "dataset_info.json").exists() and not self.state.parent.exists():
                raise DataError(
                    f"{self.folder}: holds a data set that was not built from a source; choose another --name"
                )
            self.state.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(self._content(), indent=1))
        found = read_json(path)
        for key, value in self._content().items():
            if found.get(key) != value:
                what = f"{key} = {_short(found.get(key))}, and is asked for with {_short(value)}"
                raise DataError(
                    f"{self.folder}: split '{self.split}' was begun with {what}; give what was given then, choose another --name, "
                    f"or delete {self.state} to begin anew"
                )

    def _content(self) -> dict[str, Any]:
        return {**self.settings, "records": self.records, "shards": self.shards}


def fingerprint(files: Iterable[Path]) -> str:
    """Names the content of a source: the names and sizes of its files, the whole of text, and both ends of other files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
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


def write(path: Path, text: str) -> None:
    """Writes a file that is whole or not there, whoever else writes it."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """One of the files written here.

    Raises:
      DataError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: missing or damaged ({getattr(error, 'strerror', None) or error}); delete it to build anew"
        ) from None


def ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers in words: 0-3, 7."""
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
