"""Python code that a model folder would run: its own files, and those that its settings name."""

from __future__ import annotations

from pathlib import Path

from elva_jax.errors import ConvertError
from elva_jax.hf.export import REMOTE_CODE
from elva_jax.utils.code_references import code_references


def refuse_foreign_code(folder: Path) -> None:
    """Refuses a folder that transformers would run code of, unless this version wrote that code.

    `auto_map` of any settings file may name a file in a subfolder or in another repository, and
    transformers runs `custom_generate/generate.py` unnamed.

    Raises:
      ConvertError: naming every such file.
    """
    files = [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*.py"))
        if not _is_ours(file, folder)
    ]
    named = [
        f"{reference} (named by {settings})"
        for reference, settings in code_references(folder, ConvertError)
        if not _is_ours(folder / f"{reference.rpartition('.')[0]}.py", folder)
    ]
    if foreign := [*files, *dict.fromkeys(named)]:
        raise ConvertError(
            f"{folder}: would run {', '.join(foreign)}, not written by this version of elva_jax;"
            " --trust-remote-code allows it"
        )


def _is_ours(file: Path, folder: Path) -> bool:
    """Whether a file of the folder's top level is one of ours, byte by byte."""
    ours = REMOTE_CODE / file.name
    if file.parent != folder or not (ours.is_file() and file.is_file()):
        return False
    return ours.read_bytes() == file.read_bytes()
