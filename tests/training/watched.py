"""`elva` with a note of the records of every batch: python watched.py train …

The notes go to the folder that ELVA_TEST_NOTES names. Records are pictures of one grey each, so
that the pixels of a batch show which ones it holds, whatever the pipeline reports.
"""

import json
import os
import sys
import time
from pathlib import Path

from elva_jax.cli import main
from elva_jax.data.pipeline import BatchIterator


def watch(notes):
    """Writes a line for every batch that training takes: the greys of its rows' first patches."""
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
