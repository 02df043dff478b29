"""Notes for the user about videos that are read otherwise than a player shows them.

The exported processor reads the same pixels, and says the same.
"""

from __future__ import annotations

import functools
import io
import logging

import av
from PIL import Image, ImageCms

HDR = {16: "PQ", 18: "HLG"}  # transfer functions, ITU-T H.273
# Chromaticities x, y of red, green and blue in a profile of sRGB, which is relative to D50.
SRGB = ((0.6485, 0.3309), (0.3212, 0.5979), (0.1559, 0.0660))
NEAR = 0.01
_LOG = logging.getLogger(__name__)
_said: set[str] = set()  # kinds of profiles, which many images of a data set share


def note_video(frame: av.VideoFrame, container: av.container.InputContainer, name: str) -> None:
    """Says what the frames of a video are read without.

    Args:
      frame: the first one.
      container: its file.
      name: name of the source.
    """
    if kind := HDR.get(int(frame.color_trc)):
        _LOG.warning(
            "%s: %s video (high dynamic range) is read without tone mapping, so its colors look"
            " flat; convert it to BT.709 for the colors that a display shows",
            name,
            kind,
        )
    if frame.interlaced_frame:
        _LOG.warning(
            "%s: interlaced video is read without deinterlacing, so what moves has combs at its"
            " edges; deinterlace it for the frames that a display shows",
            name,
        )
    pictures = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if len(streams) > 1:
        _LOG.warning(
            "%s: has %d video streams; the one that players choose is read", name, len(streams)
        )


def note_profile(image: Image.Image, name: str) -> None:
    """Says, once per kind of color profile, that its colors are read as those of sRGB."""
    profile = image.info.get("icc_profile")
    kind = foreign_profile(profile) if isinstance(profile, bytes) else None
    if kind and kind not in _said:
        _said.add(kind)
        _LOG.warning(
            "%s: its color profile (%s) is not applied: its values are read as sRGB, as other"
            " loaders read them; convert it to sRGB for the colors that a display shows (said once"
            " per profile)",
            name,
            kind,
        )


@functools.lru_cache(maxsize=256)
def foreign_profile(profile: bytes) -> str | None:
    """The name of an ICC profile whose colors are not those of sRGB; None for sRGB and gray."""
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        space, title = found.xcolor_space.strip(), found.profile_description
        primaries = (found.red_primary, found.green_primary, found.blue_primary)
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):  # damaged: as if there were none
        return None
    if space == "GRAY":
        return None
    if space == "RGB":
        pairs = zip(primaries, SRGB, strict=True)
        if all(
            primary is None or all(abs(a - b) < NEAR for a, b in zip(primary[1], own, strict=False))
            for primary, own in pairs
        ):
            return None
    return (title or space)[:60]
