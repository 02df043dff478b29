"""A benchmark's folder, which may be from elsewhere: no link in it may show a file of this machine.

data/videomme/data/a.mp4 → data/store/a.mp4        below --data-root: may be read
snapshots/REVISION/a.mp4 → blobs/HASH              of the same cache of the Hugging Face hub: too
data/videomme/data/a.mp4 → /home/me/a.mp4          with --follow-links only
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from elva_jax.data.readers import paths
from elva_jax.errors import DataError
from elva_jax.utils.failures import repr_path


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of a benchmark's files.

    Attributes:
      path: the folder, which may be a link itself.
      around: a folder into which links may lead, such as that of all benchmarks; None: `path`.
      follow_links: whether links may lead anywhere.
    """

    path: Path
    around: Path | None = None
    follow_links: bool = False

    @cached_property
    def _places(self) -> tuple[Path, ...]:
        return (self.around or self.path).resolve(), *paths.places(self.path)

    def refusal(self, path: str | Path) -> str:
        """Why a file or a folder of frames in the folder may not be read; "": it may."""
        if self.follow_links:
            return ""
        try:
            inside = any(map(Path(path).is_relative_to, (self.path, self.path.resolve())))
            if not inside or paths.lies_below(path, self._places):
                return ""
            target = Path(path).resolve()
        except (OSError, RuntimeError, ValueError):
            return ""  # reading it says why it cannot be read
        return (
            f"{repr_path(path)}: links lead out of {repr_path(self._places[0])}, to"
            f" {repr_path(target)}; copy the file, or give --follow-links (follow_links=True) if"
            " the links are your own"
        )

    def refusal_of(self, source: str | bytes | tuple[str, ...]) -> str:
        """Why a medium with this source may not be read; "": it may."""
        if isinstance(source, bytes):
            return ""
        files = (source,) if isinstance(source, str) else source
        return next(filter(None, map(self.refusal, files)), "")

    def checked(self, path: Path) -> Path:
        """A file of annotations.

        Raises:
          DataError: links lead out of the folder.
        """
        if refusal := self.refusal(path):
            raise DataError(refusal)
        return path

    def file(self, name: str) -> Path | None:
        """The file with a relative name; None if there is none.

        Raises:
          DataError: links lead out of the folder.
        """
        path = self.path / name
        return self.checked(path) if path.is_file() else None

    def glob(self, pattern: str) -> list[Path]:
        """The files of a pattern, sorted.

        Raises:
          DataError: links lead out of the folder.
        """
        found = sorted(path for path in self.path.glob(pattern) if path.is_file())
        return [self.checked(path) for path in found]

    def find(self, patterns: Sequence[str], layout: str) -> list[Path]:
        """The files of the first pattern that has any, sorted.

        Args:
          patterns: file names or glob patterns relative to the folder, the preferred one first.
          layout: the expected layout in words, for the message.

        Raises:
          DataError: the folder does not exist, no pattern has a file, or links lead out of the
            folder.
        """
        if not self.path.is_dir():
            raise DataError(f"{repr_path(self.path)}: no such folder; expected layout: {layout}")
        for pattern in patterns:
            if found := self.glob(pattern):
                return found
        missing = repr_path(self.path / patterns[0])
        message = f"{missing}: no such file; expected layout: {layout}"
        if self.around == self.path:
            message += f"; in {repr_path(self.path)} or in a folder there with the benchmark's name"
        raise DataError(message)
