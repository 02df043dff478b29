"""The length that a Matroska or WebM file states for itself (RFC 8794, RFC 9559).

    EBML header | Segment: ID 18 53 80 67, size, tracks, clusters of frames ...

FFmpeg reads a file that ends early as if it were complete, and only the stated size shows it.
"""

from __future__ import annotations

from pathlib import Path

SEGMENT = 0x18538067
HEAD = 4096  # bytes that hold the EBML header and the start of the Segment


def is_truncated(source: Path | bytes) -> bool:
    """Whether the file ends before its Segment; False if the size is unknown (live streams)."""
    if isinstance(source, bytes):
        head, length = source[:HEAD], len(source)
    else:
        with source.open("rb") as file:
            head, length = file.read(HEAD), source.stat().st_size
    position = 0
    while position < len(head):
        identifier, position = _read_number(head, position, marker=True)
        size, position = _read_number(head, position, marker=False)
        if identifier is None or size is None:
            return False
        if identifier == SEGMENT:
            return position + size > length
        position += size
    return False


def _read_number(data: bytes, position: int, *, marker: bool) -> tuple[int | None, int]:
    """A number of variable length and the position after it; None if it is cut or unknown.

    The zero bits before the first one bit, the marker, count the bytes that follow. A size of only
    one bits is unknown. Identifiers keep the marker.
    """
    first = data[position] if position < len(data) else 0
    count = 9 - first.bit_length()
    end = position + count
    if not first or end > len(data):
        return None, end
    value = int.from_bytes(data[position:end])
    number = value & ((1 << 7 * count) - 1)
    if marker:
        return value, end
    return (None if number == (1 << 7 * count) - 1 else number), end
