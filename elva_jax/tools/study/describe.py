"""A study: variants of one config, each trained from several seeds and asked the same questions.

A file in configs/studies/, or one of your own, defines `get_study()`:

    from elva_jax.tools.study import Study, Variant

    def get_study():
        return Study(
            config="configs/tiny.py",
            variants={
                "all": Variant(),
                "no guidance": Variant(overrides={"stages.image.loss.tube": 0.0}),
            },
        )
"""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.config.check import nearest
from elva_jax.errors import ConfigError
from elva_jax.evaluation.result import EvalConfig
from elva_jax.utils import numbers

FOLDER = Path("configs/studies")
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")  # of variants: they name folders
MOST_SEEDS = numbers.whole(1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train, or to measure.

    Attributes:
      overrides: keys of the config and their values, such as {"stages.sft.merging": False}.
      config: another config file than the study's, with the string for its `get_config`.
      after: a variant from whose run, of the same seed, the training starts.
      of: a variant whose run is measured with other settings; then nothing is trained.
      evaluate: fields of `EvalConfig` for this variant.
      environment: variables of the training process, such as {"NPROC": "1"}.
      measured: False for a run that others only start from.
      paper: the paper's number for this variant, on the scale of the study's `paper`.
    """

    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str = ""
    after: str = ""
    of: str = ""
    evaluate: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measured: bool = True
    paper: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Variants that are compared.

    Attributes:
      config: the config file that all variants start from, with the string for its `get_config`.
      variants: by name; names of letters, digits, spaces and . _ + - become folders.
      question: what the study asks, in a sentence for the report.
      baseline: the variant that the others are compared with; "": the first measured one.
      seeds: number of seeds, from 0, unless `--seeds` says otherwise.
      evaluate: fields of `EvalConfig` for all variants.
      paper: what the numbers `Variant.paper` are, such as "Table 2, MVBench"; "": none.
      note: what a reader must know before the numbers, such as what a tiny model cannot show.
    """

    config: str
    variants: Mapping[str, Variant]
    question: str = ""
    baseline: str = ""
    seeds: int = 3
    evaluate: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses names, references and settings that cannot work."""
        MOST_SEEDS.check("seeds", self.seeds)
        for name in self.variants:
            if not NAMES.fullmatch(name):
                raise ConfigError(
                    f"variant '{numbers.shown(name)}': use up to 64 letters, digits, spaces and"
                    " . _ + -, beginning with a letter or digit"
                )
        for name, variant in self.variants.items():
            self._check_variant(name, variant)
        if not self.measured:
            raise ConfigError("variants: none is measured")
        if self.baseline and self.baseline not in self.measured:
            raise ConfigError(
                f"baseline: '{numbers.shown(self.baseline)}' is no measured variant"
                f"{nearest(self.baseline, self.measured)}"
            )

    def _check_variant(self, name: str, variant: Variant) -> None:
        others = list(self.variants)[: list(self.variants).index(name)]
        for key in ("after", "of"):
            other = getattr(variant, key)
            if other and other not in others:
                raise ConfigError(
                    f"variant '{name}': {key}='{numbers.shown(other)}' is no variant before it"
                )
        if variant.of and (self.variants[variant.of].of or variant.after):
            raise ConfigError(
                f"variant '{name}': of='{variant.of}' must name a variant that is trained, and"
                " `after` does not go together with it"
            )
        if variant.of and (variant.overrides or variant.config or variant.environment):
            raise ConfigError(
                f"variant '{name}': of='{variant.of}' is measured only; overrides, config and"
                " environment would change nothing"
            )
        fields = {field.name for field in dataclasses.fields(EvalConfig)}
        for key in (*self.evaluate, *variant.evaluate):
            if key not in fields:
                raise ConfigError(
                    f"variant '{name}': evaluate has no '{numbers.shown(key)}'"
                    f"{nearest(key, sorted(fields))}"
                )

    @property
    def measured(self) -> tuple[str, ...]:
        """The variants in the report, the baseline first."""
        names = [name for name, variant in self.variants.items() if variant.measured]
        first = self.baseline or next(iter(names), "")
        return tuple(sorted(names, key=lambda name: name != first))


def find(name: str) -> Path:
    """The file of a study: a path, or a name in configs/studies/.

    Raises:
      ConfigError: there is none.
    """
    path = Path(name)
    if path.suffix == ".py":
        if path.is_file():
            return path
        raise ConfigError(f"{numbers.shown(path)}: no such file")
    names = known()
    if name in names:
        return FOLDER / f"{name}.py"
    listed = ", ".join(names) or f"none in {FOLDER.absolute()}"
    raise ConfigError(f"study '{numbers.shown(name)}' is unknown{nearest(name, names)}; {listed}")


def known() -> list[str]:
    """The names of the studies in configs/studies/ of the working directory."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def load_study(path: Path) -> Study:
    """Runs the file's `get_study`.

    Raises:
      ConfigError: it fails, or returns something else.
    """
    try:
        found = runpy.run_path(str(path))["get_study"]()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except KeyError as error:
        missing = error.args == ("get_study",)
        what = "defines no function get_study" if missing else f"KeyError: {error}"
        raise ConfigError(f"{path}: {what}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file is code of the user's: it may raise anything
        first = str(error).partition("\n")[0][:300]
        raise ConfigError(f"{path}: {type(error).__name__}: {first}") from error
    if not isinstance(found, Study):
        raise ConfigError(f"{path}: get_study returned {type(found).__name__}; return a Study")
    return found
