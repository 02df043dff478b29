"""A source by its name and options, opened, and the plan to build a data set of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import av
import PIL

from elva_jax.config import schema
from elva_jax.data import sources
from elva_jax.data.example import Example
from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.datasets.build.plan import VERSION, Plan, fingerprint
from elva_jax.tools.datasets.build.prepare import Counting, Preparation

WORD = re.compile(r"[a-z][a-z0-9_]*")


def open_source(name: str, data_dir: str | Path, split: str, root: str = "") -> Sequence[Example]:
    """Opens a file, which has a root, or a built data set, which has splits, or a Hugging Face folder, which may have both.

    Raises:
      ConfigError: a root for a data set.
      DataError: there is no such source.
    """
    if sources.is_file(name):
        return sources.open_examples(
            schema.source(name, split if name.startswith(sources.HUGGING_FACE) else "", root=root),
            data_dir,
        )
    if root:
        raise ConfigError(
            f"--root is for files ({', '.join(sources.FILE_READERS)}); {name} is a data set with its media in it"
        )
    return sources.open_examples(schema.source(name, split), data_dir)


def folder(name: str, data_dir: str | Path) -> Path:
    """Where a data set is built."""
    return Path(data_dir) / name / VERSION


def begin(
    source: str,
    data_dir: str | Path,
    *,
    name: str,
    split: str = "train",
    source_split: str | None = None,
    root: str = "",
    longest_edge: int = 0,
    shard_size: int = 1000,
    counting: Counting = Counting(),  # noqa: B008 (immutable)
) -> tuple[Plan, Preparation]:
    """Opens a source and begins to build it as a split of a data set, or finds what was begun.

    Args:
      source: file, or name of a built data set.
      data_dir: where data sets are built.
      name: of the new data set.
      split: of it.
      source_split: of a source that is a built data set; None: `split`.
      root: folder that a file's media paths are relative to; "": the file's.
      longest_edge: pixels to which larger media are transcoded; 0: none is.
      shard_size: records of the source that go into a file, about.
      counting: what tokens are counted for.

    Raises:
      ConfigError: a name or option that cannot be.
      DataError: no such source, or something else was begun under this name.
    """
    if not WORD.fullmatch(name) or name in sources.READERS:
        taken = " (that name is taken)" if name in sources.READERS else ""
        raise ConfigError(
            f"--name {name}: must be lower-case letters, digits and _, such as my_videos{taken}"
        )
    if not WORD.fullmatch(split) or split == "all":
        raise ConfigError(
            f"--split {split}: must be lower-case letters, digits and _, such as train"
        )
    huggingface = source.startswith(sources.HUGGING_FACE)
    if source_split and sources.is_file(source) and not huggingface:
        raise ConfigError(
            f"--source-split {source_split}: {source} is a file, which has no splits; leave it out"
        )
    examples = open_source(source, data_dir, source_split or ("" if huggingface else split), root)
    if counting.tokenizer:
        _check_tokenizer(counting.tokenizer)
    settings = {
        "source": Path(source).name
        if sources.is_file(source)
        else f"{source} {source_split or split}",
        "root": str(Path(root).expanduser().resolve()) if root else "",
        "content": fingerprint(examples.files),
        "longest_edge": longest_edge,
        "tokens_at": counting._asdict(),
    }
    if longest_edge:  # other versions may write other bytes
        settings["codecs"] = {
            "av": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
            "pillow": PIL.__version__,
        }
    plan = Plan(
        Path(data_dir),
        name,
        split,
        len(examples),
        max(1, -(-len(examples) // shard_size)),
        settings,
    )
    try:
        plan.begin()
    except OSError as error:
        raise DataError(f"{plan.folder}: cannot be written ({error.strerror})") from None
    return plan, Preparation(examples, counting, longest_edge)


def _check_tokenizer(name: str) -> None:
    from elva_jax.data import conversation, tokenizer

    conversation.check_tokenizer(tokenizer.load(name))
