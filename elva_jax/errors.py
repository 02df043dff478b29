"""The errors that reach a user: one clear line each, naming the file, key or shape and the way out."""


class ElvaError(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""


class ConfigError(ElvaError):
    """A configuration key, value or combination that cannot work."""


class VideoError(ElvaError):
    """A media file that cannot be read.

    Args:
      name: the file's path, or a caller's name for bytes.
      reason: what is wrong with it, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)


class LayoutError(ElvaError):
    """A sequence that cannot be laid out, or does not fit its static length."""


class DataError(ElvaError):
    """A data set that is missing, malformed, or has too many bad records."""


class CheckpointError(ElvaError):
    """A checkpoint that is missing, damaged, or does not match the run."""


class TrainingError(ElvaError):
    """Training that cannot go on, such as a run of non-finite losses."""


class ConvertError(ElvaError):
    """Weights that cannot be read, written, or brought from one layout into another."""
