"""Reading a config file with its overrides, and `get_config(arg)` strings."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from elva_jax.config.check import nearest
from elva_jax.config.schema import Config, to_config_dict
from elva_jax.config.serialize import freeze
from elva_jax.config.validate import check_contradictions
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads `path.py` or `path.py:arg`, applies overrides and validates the result.

    Args:
      spec: the config file, and after a colon the string given to its `get_config`.
      overrides: command-line words such as `--config.seed=3`.

    Raises:
      ConfigError: a file, key, type, value or combination that cannot work.

    Example:
      >>> import elva_jax
      >>> config = elva_jax.load_config("configs/tiny.py:smoke", ["--config.seed=3"])
      >>> config.seed
      3
    """
    config = load_unchecked(spec, overrides)
    resolve(config)
    return config


def resolve(config: ConfigDict | Config) -> Config:
    """The typed, frozen form of a configuration that can train.

    Raises:
      ConfigError: naming the key, the problem and the nearest valid key or value.
    """
    config = freeze(to_config_dict(config) if isinstance(config, Config) else config)
    check_contradictions(config)
    return config


def load_unchecked(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """As `load`, but without a look at the values.

    Raises:
      ConfigError: the file or an override cannot be read.
    """
    path = Path(spec.partition(":")[0])
    try:
        found = path.is_file()
    except (OSError, ValueError):  # longer than a path can be, or NUL in it
        found = False
    if not found:
        raise ConfigError(f"{numbers.shown(path)}: no such config file; see the files in configs/")
    plain = _parse(spec, [])
    _check_repeated(overrides)
    for word, following in itertools.zip_longest(overrides, overrides[1:], fillvalue=""):
        value = _check_key(plain, word)
        _, equals, text = word.partition("=")
        text = text if equals else following
        # int() and float() read the digits of every script.
        if isinstance(value, (int, float)) and not text.isascii():
            raise ConfigError(f"{word.partition('=')[0]}: '{numbers.shown(text)}' is not a number")
    return _parse(spec, overrides)


def _parse(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """Runs `get_config`, applies overrides, and reports whatever goes wrong in one line."""
    # ml_collections loads each file into this one module, where an earlier file's names would stay.
    sys.modules.pop("config_config", None)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(overrides))
    try:
        rest = values(["elva", f"--config={spec}", *overrides])
        config = values.config
    except ConfigError:
        raise
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(
            f"unknown option --{error.flagname}; settings are changed with --config.KEY=VALUE"
        ) from None
    except flags.Error as error:
        raise ConfigError(f"{spec}: {_one_line(error)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config file is code: it may exit, or raise anything
        if isinstance(error, AttributeError) and error.name == "get_config":
            raise ConfigError(f"{spec}: defines no function get_config") from None
        # The user's own code raised it: they need its name and their file, not our frames.
        raise ConfigError(f"{spec}: {type(error).__name__}: {_one_line(error)}") from error
    if len(rest) > 1:
        raise ConfigError(
            f"'{numbers.shown(rest[1])}' is not an option; settings are changed with"
            " --config.KEY=VALUE"
        )
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{spec}: get_config returned {type(config).__name__}; return the ConfigDict that"
            " elva_jax.config.schema.base() makes"
        )
    return config


def _one_line(error: BaseException) -> str:
    """First and last line of a message."""
    lines = str(error).removeprefix("flag ").strip().splitlines() or [""]
    text = " ".join(dict.fromkeys((lines[0], lines[-1].strip())))
    return text if len(text) <= 400 else f"{text[:400]}…"


def _is_option(word: str) -> bool:
    """Whether a word of the command line is no value."""
    return word.startswith("-") and not word[1:2].isdigit()


def _check_repeated(overrides: Sequence[str]) -> None:
    """Refuses two values for one key, of which the last would be taken."""
    names = [word.lstrip("-").partition("=")[0] for word in overrides if _is_option(word)]
    for number, name in enumerate(names):
        if name in names[:number]:
            key = numbers.shown(name.removeprefix("config."))
            raise ConfigError(f"{key}: has two values on the command line; give it once")


def _check_key(config: ConfigDict, word: str) -> Any:
    """The present value of a key; refuses one that does not exist, with the nearest one."""
    if not _is_option(word):
        return None  # the value of the word before it, or refused as a stray word
    name = numbers.shown(word.lstrip("-").partition("=")[0])
    if not name.startswith("config."):  # absl has options of its own, such as --flagfile
        raise ConfigError(f"unknown option --{name}; settings are changed with --config.KEY=VALUE")
    path = name.removeprefix("config.")
    if "[" in path:
        raise ConfigError(
            f"{path}: entries cannot be set one by one; give all of them, as in"
            f" --config.{path.partition('[')[0]}='(1, 2)'"
        )
    group: Any = config
    for part in path.split("."):
        if not isinstance(group, ConfigDict):
            raise ConfigError(f"{path}: a single value has no key '{part}'")
        if part not in group:
            raise ConfigError(f"{path}: no such key '{part}'{nearest(part, group)}")
        group = group[part]
    return group


def sibling(file: str, name: str) -> Any:
    """The config file NAME.py beside a config file, as a module.

    Args:
      file: `__file__` of the config file that asks.
      name: of the other one, without its ending.
    """
    path = Path(file).with_name(f"{name}.py")
    spec: Any = importlib.util.spec_from_file_location(f"elva_config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choose(what: str, value: str, allowed: Sequence[str]) -> str:
    """Returns `value` if allowed, otherwise raises ConfigError with the nearest allowed one."""
    if value in allowed:
        return value
    raise ConfigError(
        f"{what}: '{value}' is not one of {', '.join(allowed)}{nearest(value, allowed)}"
    )


def parse_arg(arg: str, **defaults: str) -> dict[str, str]:
    """Parses a `get_config` string such as `size=7b,stage=2`.

    Raises:
      ConfigError: a key outside `defaults`, or one without a value.
    """
    values, given = dict(defaults), set[str]()
    for piece in filter(None, arg.split(",")):
        key, equals, value = piece.partition("=")
        choose("config argument", key, list(defaults))
        if not equals or not value:
            raise ConfigError(f"config argument '{piece}' needs a value: {key}=…")
        if key in given:
            raise ConfigError(f"config argument '{key}' has two values; give it once")
        given.add(key)
        values[key] = value
    return values
