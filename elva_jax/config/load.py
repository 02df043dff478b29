"""Reading a config file with its overrides, and `get_config(arg)` strings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from elva_jax.config.validate import nearest, validate
from elva_jax.errors import ConfigError


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads `path.py` or `path.py:arg`, applies overrides and validates the result.

    Args:
      spec: the config file, and after a colon the string given to its `get_config`.
      overrides: command-line words such as `--config.seed=3`.

    Raises:
      ConfigError: anything about the file, a key, a type, a value or a combination that cannot work.

    Example:
      >>> import elva_jax
      >>> config = elva_jax.load_config("configs/tiny.py:smoke", ["--config.seed=3"])
      >>> config.seed
      3
    """
    path = Path(spec.partition(":")[0])
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; see the files in configs/")
    try:
        plain = _parse(spec, [])
    except ConfigError:
        raise
    except Exception as error:
        # Whatever the user's own Python raises, they need its name and the file, not our frames.
        raise ConfigError(f"{spec}: {type(error).__name__}: {_ends(error)}") from error
    for word in overrides:
        _check_key(plain, word)
    try:
        config = _parse(spec, overrides)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(
            f"unknown option --{error.flagname}; settings are changed with --config.KEY=VALUE"
        ) from None
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"{spec}: {_ends(error)}") from None
    validate(config)
    return config


def _ends(error: Exception) -> str:
    """First and last line of a message of several."""
    lines = str(error).removeprefix("flag ").strip().splitlines() or [""]
    return " ".join(dict.fromkeys((lines[0], lines[-1].strip())))


def _parse(spec: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(overrides))
    rest = values(["elva", f"--config={spec}", *overrides])
    if len(rest) > 1:
        raise ConfigError(
            f"'{rest[1]}' is not an option; settings are changed with --config.KEY=VALUE"
        )
    return values.config


def _check_key(config: ConfigDict, word: str) -> None:
    """Refuses an override of a key that is not there, with its nearest neighbour."""
    path = re.fullmatch(r"--?config\.([\w.]+)(=.*)?", word, re.DOTALL)
    group = config
    for part in path.group(1).split(".") if path else ():
        if not isinstance(group, ConfigDict):
            raise ConfigError(f"{path.group(1)}: a single value has no key '{part}'")
        if part not in group:
            raise ConfigError(f"{path.group(1)}: no such key '{part}'{nearest(part, list(group))}")
        group = group[part]


def choose(what: str, value: str, allowed: Sequence[str]) -> str:
    """Returns `value` if allowed, otherwise raises ConfigError with the nearest allowed one."""
    if value in allowed:
        return value
    raise ConfigError(
        f"{what}: '{value}' is not one of {', '.join(allowed)}{nearest(value, allowed)}"
    )


def parse_arg(arg: str, **defaults: str) -> dict[str, str]:
    """Parses a `get_config` string such as `size=7b,stage=2`; keys outside `defaults` are refused."""
    values = dict(defaults)
    for piece in filter(None, arg.split(",")):
        key, equals, value = piece.partition("=")
        choose("config argument", key, list(defaults))
        if not equals or not value:
            raise ConfigError(f"config argument '{piece}' needs a value: {key}=…")
        values[key] = value
    return values
