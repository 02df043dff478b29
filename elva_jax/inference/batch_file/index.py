"""A file of questions for random access: what each row is about, without its media."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from elva_jax.data.example import Media
from elva_jax.data.readers import paths
from elva_jax.data.readers.json_file import JsonFile
from elva_jax.errors import DataError, RecordError
from elva_jax.inference.batch_file.rows import Label, Row, label_of, read_row
from elva_jax.inference.batches.queries import Writing
from elva_jax.utils.failures import repr_path

MOST_IGNORED = 100  # keys that are remembered
FEWEST = 4  # files that say enough about a folder of media


@dataclass(frozen=True)
class Inline:
    """A medium within a row, which is decoded when it is needed; equal for equal content."""

    digest: bytes
    row: int = field(compare=False)
    position: int = field(compare=False)


class QuestionFile:
    """The rows of a file.

    Args:
      path: JSON lines, or a JSON array.
      media_dir: the folder that media paths are relative to and stay in; None: that of the file.
      default: how an answer is written where a row does not say.
      profiles: names of settings of merging that rows may have.

    Attributes:
      problems: by row, why it cannot be asked.
      media: by row, what it is about.
      hybrids: by row, the fields of a `Hybrid`, of those that have some.
      ignored: keys of rows that mean nothing here.

    Raises:
      DataError: the file or folder is missing, the file has another format or no rows, or none of
        its media exists.
    """

    def __init__(
        self,
        path: Path,
        media_dir: str | Path | None,
        default: Writing,
        profiles: Collection[str] = (),
    ) -> None:
        self._file = JsonFile(path, "" if media_dir is None else str(media_dir))
        if not len(self._file):
            raise DataError(f"{repr_path(path)}: has no rows")
        self._default, self._profiles = default, profiles
        self.problems: dict[int, DataError] = {}
        self.hybrids: dict[int, Mapping[str, int | str]] = {}
        self.ignored: set[str] = set()
        self.media = [self._index(row) for row in range(len(self._file))]
        self._check_folder(path)

    def __len__(self) -> int:
        return len(self._file)

    def place(self, row: int) -> str:
        """A row in messages: the file with line or index."""
        return self._file.place(row)

    def digest(self, row: int) -> str:
        """A hash of a row's text."""
        return hashlib.sha256(self._file.text(row)).hexdigest()[:16]

    def read(self, row: int) -> Row:
        """A row with its media.

        Raises:
          DataError: it cannot be asked.
        """
        place, value = self._file.record(row)
        return read_row(value, place, self._file.root, self._default, self._profiles)

    def label(self, row: int, model: str) -> Label:
        """The fields of a row that its answer repeats; `model` is the name where a row has none."""
        try:
            _, value = self._file.record(row)
        except RecordError:
            return Label(form="record")
        return label_of(value, model)

    def source(self, medium: Hashable) -> Media:
        """A medium as it is read: its path, or its bytes."""
        if isinstance(medium, Inline):
            return self.read(medium.row).dialogue.media[medium.position]
        return cast(Media, medium)

    def _index(self, row: int) -> tuple[Hashable, ...]:
        try:
            found = self.read(row)
        except DataError as error:
            self.problems[row] = error
            return ()
        if found.hybrid:
            self.hybrids[row] = found.hybrid
        if len(self.ignored) < MOST_IGNORED:
            self.ignored.update(found.ignored)
        return tuple(_key(m, row, number) for number, m in enumerate(found.dialogue.media))

    def _check_folder(self, path: Path) -> None:
        files = [m.source for of_row in self.media for m in of_row if isinstance(m, Media)]
        named = [source for source in files if isinstance(source, str)]
        if len(named) >= FEWEST:
            paths.check_some_exist(
                named,
                f"{repr_path(path)}: none of its {len(named)} media exists, such as"
                f" {repr_path(named[0])}; set --media-dir to the folder that its paths are"
                " relative to",
            )


def _key(medium: Media, row: int, position: int) -> Hashable:
    """A key that stands for a medium until it is read."""
    if not isinstance(medium.source, bytes):
        return medium
    about: Any = (medium.kind, medium.start, medium.end, medium.frames)
    digest = hashlib.sha256(repr(about).encode() + medium.source).digest()
    return Inline(digest, row, position)
