"""Runs `elva` and logs the records of every batch: python watched.py train …

The logs are written to the folder ELVA_TEST_NOTES. Each record is an image of one gray level, so
that the pixels of a batch show which records it has, independently of the pipeline's reports.
"""

import json
import os
import sys
import time
from pathlib import Path

from elva_jax.cli import main
from elva_jax.data.pipeline import BatchIterator


def watch(notes):
    """Logs a line per batch of training: the gray levels of the first patch of each row."""
    plain = BatchIterator.__next__

    def watched(self):
        batch = plain(self)
        notes.write(json.dumps(batch["patches"][:, 0].mean(-1).round().astype(int).tolist()) + "\n")
        return batch

    BatchIterator.__next__ = watched


if __name__ == "__main__":
    with (Path(os.environ["ELVA_TEST_NOTES"]) / f"{time.time_ns()}.jsonl").open(
        "w", buffering=1
    ) as notes:
        watch(notes)
        sys.exit(main(sys.argv[1:]))
