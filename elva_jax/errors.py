"""The errors that reach a user, each one line that names the file, key or shape and the way out.

The command line prints them without a traceback: a ConfigError ends it with status 2, any other
with status 1.

Example:
  >>> import elva_jax
  >>> try:
  ...     elva_jax.load("no/such/run")
  ... except elva_jax.errors.ElvaError as error:
  ...     print(type(error).__name__)
  CheckpointError
"""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # format characters that words and emojis are made with


def printable(text: str) -> str:
    """Text whose control characters, with which a file could rule a terminal, are escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and letter not in ("\n", "\t", *JOINERS)
        else letter
        for letter in text
    )


class ElvaError(Exception):
    """Base class of all of them."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(ElvaError):
    """A configuration key, option or combination that cannot work."""


class _NamedError(ElvaError):
    """An error about one thing among many, with the reason apart, so that reasons can be counted.

    Args:
      name: the thing: a file's path, or the caller's name for it.
      reason: what is wrong with it, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = printable(reason)

    def __reduce__(self) -> tuple[type[_NamedError], tuple[str, str]]:
        # Errors cross process boundaries: the default would call the class with the joined text.
        return type(self), (self.name, self.reason)


class VideoError(_NamedError):
    """A video or image cannot be read."""


class LayoutError(ElvaError):
    """Text and media cannot be laid out as one sequence, or do not fit its static length."""


class DataError(ElvaError):
    """A data set is missing, malformed, or has too many bad records."""


class RecordError(_NamedError, DataError):
    """One record of a data set is malformed; its name is its key or its place in the file."""


class RequestError(_NamedError, DataError):
    """A request for an answer is malformed; its name is the key that is wrong."""


class CheckpointError(ElvaError):
    """A checkpoint is missing, is damaged, does not match the run, or could not be saved."""


class TrainingError(ElvaError):
    """Training cannot continue, for example because the loss is not finite step after step."""


class ConvertError(ElvaError):
    """Weights cannot be read, written, or converted to another layout."""


class StartError(ElvaError):
    """The processes of a run did not come together, or one of them was lost."""


class ServeError(ElvaError):
    """A request that a running engine does not take."""


class QueueFullError(ServeError):
    """Too many requests are waiting; try again later."""


class ClosedError(ServeError):
    """The engine is draining or has ended, and takes no more requests."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
