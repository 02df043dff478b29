"""The functions of the local tasks."""

import os
import sys
import time

from PIL import Image


def wait_or_give(doc):
    """The media, after which the process may be killed."""
    if doc["question"] == os.environ.get("ELVA_TEST_WAIT"):
        time.sleep(600)
    return visuals(doc)


def visuals(doc):
    """A path, an image, an excerpt or nothing; ends the process where the file is missing."""
    video = doc["video"]
    if video and not os.path.exists(video):
        sys.exit(f"video path:{video} does not exist, please check")
    if video and video.endswith(".png"):
        return [Image.open(video).convert("RGB")]
    if doc["end"]:
        clip = {
            "type": "video",
            "path": video,
            "video_start": doc["start"],
            "video_end": doc["end"],
        }
        return [clip]
    return [video] if video else []


def present(doc):
    """The same, without media where the file is missing."""
    return visuals(doc) if doc["video"] and os.path.exists(doc["video"]) else []


def clips(doc):
    """The path of a whole video, or nothing."""
    return [visual for visual in present(doc) if isinstance(visual, str)]


def same(doc, results):
    """Whether the answer is the reference."""
    return {"same": float(results[0] == doc["reference"])}


def rounds(
    doc,
    lmms_eval_specific_kwargs=None,
    previous_output=None,
    round_idx=None,
    previous_round_info=None,
):
    """The question, then one that names the answer; the first document ends after one round."""
    if round_idx is None:
        return doc["question"]
    if round_idx == 2 or doc["doc"] == 0:
        return None, None, True, previous_output, None
    return (
        present(doc),
        f"Then? {previous_output[-1]}",
        False,
        previous_output,
        {"round": round_idx},
    )


def count_rounds(doc, results):
    """The number of answers; every one is checked by the test itself."""
    return {"rounds": float(len(results[0]))}
