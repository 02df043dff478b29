"""Opens a source and makes the plan to build a data set from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import PIL

from elva_jax.config import schema
from elva_jax.data import conversation, sources, tokenizer
from elva_jax.data.example import Example
from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.datasets.build.plan import VERSION, Plan, fingerprint
from elva_jax.tools.datasets.build.prepare import Preparation, TokenSettings
from elva_jax.utils.read import check_output_folder

WORD = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """A source and the data set to build from it.

    Attributes:
      source: file, `hf:` folder, or name of a built data set.
      name: of the new data set.
      data_dir: the folder of built data sets.
      split: split to build.
      source_split: split of a source that has splits; None: `split`.
      root: folder of a file's media paths; "": the file's folder.
      longest_edge: pixels to which larger media are transcoded; 0: none are.
      shard_size: records of the source per file, approximately.
      token_settings: how tokens are counted.
    """

    source: str
    name: str
    data_dir: str | Path
    split: str = "train"
    source_split: str | None = None
    root: str = ""
    longest_edge: int = 0
    shard_size: int = 1000
    token_settings: TokenSettings = dataclasses.field(default_factory=TokenSettings)


def open_source(name: str, data_dir: str | Path, split: str, root: str = "") -> Sequence[Example]:
    """Opens a file, a built data set, or a Hugging Face folder.

    A file may have a root and has no splits; a data set has splits and no root; a folder may have
    both.

    Raises:
      ConfigError: a root for a data set.
      DataError: there is no such source.
    """
    if sources.is_file(name):
        split = split if name.startswith(sources.HUGGING_FACE) else ""
        return sources.open_examples(schema.source(name, split, root=root), data_dir)
    if root:
        raise ConfigError(
            f"--root is for files ({', '.join(sources.FILE_READERS)}); "
            f"{name} is a data set with its media in it"
        )
    return sources.open_examples(schema.source(name, split), data_dir)


def folder(name: str, data_dir: str | Path) -> Path:
    """The folder of a built data set."""
    return Path(data_dir) / name / VERSION


def begin(options: BuildOptions) -> tuple[Plan, Preparation]:
    """Opens a source and starts to build a split of a data set, or continues.

    Raises:
      ConfigError: an invalid name or option.
      DataError: no such source, or another build was started under this name.
    """
    _check_names(options)
    check_output_folder(options.data_dir, "--data-dir")
    str(options.data_dir).encode()  # ArrayRecord takes names in UTF-8 alone
    examples = _open(options)
    if options.token_settings.tokenizer:
        conversation.check_tokenizer(tokenizer.load(options.token_settings.tokenizer))
    plan = Plan(
        data_dir=Path(options.data_dir),
        name=options.name,
        split=options.split,
        records=len(examples),
        shards=max(1, -(-len(examples) // options.shard_size)),
        settings=_settings(options, examples),
    )
    try:
        plan.begin()
    except OSError as error:
        raise DataError(f"{plan.folder}: cannot be written ({error.strerror})") from None
    return plan, Preparation(examples, options.token_settings, options.longest_edge)


def _check_names(options: BuildOptions) -> None:
    rule = "must be lower-case letters, digits and _"
    if not WORD.fullmatch(options.name) or options.name in sources.READERS:
        taken = " (that name is taken)" if options.name in sources.READERS else ""
        raise ConfigError(f"--name {options.name}: {rule}, such as my_videos{taken}")
    if not WORD.fullmatch(options.split) or options.split == "all":
        raise ConfigError(f"--split {options.split}: {rule}, such as train")


def _open(options: BuildOptions) -> Sequence[Example]:
    source, split = options.source, options.source_split
    huggingface = source.startswith(sources.HUGGING_FACE)
    if split and sources.is_file(source) and not huggingface:
        raise ConfigError(
            f"--source-split {split}: {source} is a file, which has no splits; leave it out"
        )
    default = "" if huggingface else options.split
    return open_source(source, options.data_dir, split or default, options.root)


def _settings(options: BuildOptions, examples: Any) -> dict[str, Any]:
    """Everything that the bytes of the files depend on."""
    source, root = options.source, options.root
    split = options.source_split or options.split
    settings = {
        "source": Path(source).name if sources.is_file(source) else f"{source} {split}",
        "root": str(Path(root).expanduser().resolve()) if root else "",
        "content": fingerprint(examples.files),
        "longest_edge": options.longest_edge,
        "tokens_at": dataclasses.asdict(options.token_settings),
    }
    if options.longest_edge:  # other versions may encode other bytes
        settings["codecs"] = {
            "av": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
            "pillow": PIL.__version__,
        }
    return settings
