"""`elva` with a note of every record that is trained: python watched.py train … writes to the folder that ELVA_TEST_NOTES names.

Records are pictures of one grey each, so that the pixels of a batch tell which ones it holds, whatever the pipeline says of them.
"""

import json
import os
import sys
import time
from pathlib import Path

from elva_jax.cli import main
from elva_jax.data.pipeline import BatchIterator


def watch(notes):
    """Every batch that training takes becomes a line: the greys of its rows' first patches."""
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
