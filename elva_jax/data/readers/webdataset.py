"""Tar shards of WebDataset; random access by byte offsets, without extracting files."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from elva_jax.data.example import Example, Media
from elva_jax.data.readers import chat, fields, records
from elva_jax.errors import DataError, RecordError
from elva_jax.utils.read import LARGEST_TEXT, open_regular
from elva_jax.video.read import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif")
NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # the key of a record, and the suffix of a member
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
LARGEST_MEDIUM = 2**31  # bytes of a video or image, which is read whole
BLOCK = 512  # bytes per block of a tar file


class WebDataset(Sequence[Example]):
    """The records of tar shards: consecutive members with the same name up to the first dot.

    Videos and images become media, in the order of the members. A `json` member is a conversation
    (see `chat.to_example`) or has a field caption or text; media names in it are ignored, because
    its media are the members. Without a `json` member, a `txt` member is the caption. A record with
    two `json` or `txt` members, or two members of one name, is refused: names with dots such as
    `cam1.2024-05-01.json` put several records into one.

    Args:
      pattern: path of one shard, or of several as in `clips-{000..099}.tar` or `clips-*.tar`.

    Raises:
      DataError: a shard is missing, truncated or not a tar file; the message names the offset.
    """

    def __init__(self, pattern: str | Path):
        self.files = self.shards = _shards(str(pattern))
        spans = ((k, *span) for k, shard in enumerate(self.shards) for span in _spans(shard))
        # (shard, offset of the first header, end of the last member) of every record.
        self.spans_Nx3 = np.fromiter(spans, np.dtype((np.int64, 3)))

    def __len__(self) -> int:
        return len(self.spans_Nx3)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Reads a record with its media as bytes.

        Raises:
          RecordError: the record is malformed; the message names the shard and the key.
        """
        number, start, end = self.spans_Nx3[index].tolist()
        shard = self.shards[number]
        key, media, texts, names = f"{shard.name}@{start}", [], {}, set()
        with open_regular(shard) as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None and member.offset < end:
                    parts = NAME.fullmatch(member.name)
                    if member.isdir() or not parts:
                        continue
                    key = f"{shard.name}/{parts[1]}".encode(errors="replace").decode()
                    _check(member, key)
                    suffix = PurePosixPath(f"x.{parts[2]}").suffix.lower()
                    if suffix not in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".json", ".txt"):
                        continue
                    if suffix in texts or member.name in names:
                        raise RecordError(
                            key,
                            f"has two members for {suffix} (names are equal up to the first dot; "
                            "rename members so that dots stand only before suffixes)",
                        )
                    names.add(member.name)
                    content = tar.extractfile(member)
                    assert content is not None  # `_check` accepts only regular files
                    data = content.read()
                    if suffix in (".json", ".txt"):
                        texts[suffix] = data
                    else:
                        media.append(Media(data, "video" if suffix in VIDEO_SUFFIXES else "image"))
        return _to_example(key, tuple(media), texts)


def _to_example(key: str, media: tuple[Media, ...], texts: dict[str, bytes]) -> Example:
    record = records.decode_json(texts[".json"], key) if ".json" in texts else {}
    caption = records.decode(texts.get(".txt", b""), key)
    if not isinstance(record, dict):
        raise RecordError(key, "is not a JSON object")
    if chat.has_turns(record):
        return chat.converse(record, key, media)
    if not media:
        raise RecordError(key, "has neither a video nor an image")
    caption = next(
        (record[field] for field in records.CAPTIONS if isinstance(record.get(field), str)), caption
    )
    return records.captioned(key, fields.excerpts(record, media, key), caption)


def _check(member: tarfile.TarInfo, key: str) -> None:
    """Rejects members that would be dangerous to extract.

    Raises:
      RecordError: the name is an absolute path or contains `..`, or the member is not a regular
        file.
    """
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise RecordError(key, "a member's name leaves the shard")
    if not member.isreg():
        raise RecordError(key, "a member is a link or a device")
    text = path.suffix.lower() in (".json", ".txt")
    if member.size > (limit := LARGEST_TEXT if text else LARGEST_MEDIUM):
        raise RecordError(key, f"a member has more than {limit >> 20} MiB, the limit of its kind")


def _shards(pattern: str) -> list[Path]:
    """The shards that a pattern names, in order."""
    match = RANGE.search(pattern)
    if match:
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        return [
            path
            for n in numbers
            for path in _shards(
                pattern[: match.start()] + str(n).zfill(len(first)) + pattern[match.end() :]
            )
        ]
    path = Path(pattern)
    found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not found:
        raise DataError(f"{path}: no such shard")
    return found


def _spans(shard: Path) -> Iterator[tuple[int, int]]:
    """(offset of the first header, end) of every record of a shard, found by its headers."""
    last, start, at, offset = None, 0, 0, 0
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep all members in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                parts = NAME.fullmatch(member.name)
                if not member.isdir() and parts and parts[1] != last:
                    if last is not None:
                        yield start, member.offset
                    last, start = parts[1], member.offset
                at, offset = member.offset, tar.offset
                if member.size < 0:  # would read earlier members again, endlessly
                    raise tarfile.ReadError("a member of negative size")
            file.seek(offset)
            rest = file.read(BLOCK)  # tarfile takes a broken header for the end of the archive
    except OSError as error:
        raise DataError(f"{shard}: cannot be read at byte {at} ({error.strerror})") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        # ValueError and OverflowError: tarfile accepts absurd numbers in a header.
        raise DataError(
            f"{shard}: truncated, or not an uncompressed tar, at byte {at} ({error})"
        ) from None
    if rest.strip(b"\0") or 0 < len(rest) < BLOCK:
        raise DataError(f"{shard}: truncated or broken, at byte {offset} (no header of a member)")
    if last is not None:
        yield start, offset
