"""Fuzzes overrides and config files: `python tests/fuzz/config.py --findings DIR`.

An input is a config file or nothing, then a line with the word `OVERRIDES`, then one word a line.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import common

from elva_jax.config.describe import walk
from elva_jax.config.keys import keys
from elva_jax.config.load import load

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs/tiny.py")
SPLIT = b"\nOVERRIDES\n"
PATHS = [
    prefix.replace("stages.NAME.", f"stages.{stage}.").replace("NAME", label) + name
    for prefix, cls in walk()
    for name in keys(cls)
    for stage, label in (("image", "images"), ("video", "videos"))
]
FORMS = ["{}", "({},)", "('{}',)", "[{}]", "{{{}}}", "({}, {})", "'{}'"]
FILE = "from elva_jax.config import schema\ndef get_config(arg=None):\n    c = schema.base()\n"
BODIES = [
    "    c.{path} = {value}\n    return c\n",
    "    return {value}\n",
    "    raise {error}({value})\n",
    "    c.stages.a = schema.stage()\n    c.stages.a.data.mixture.b = schema.source({value})\n"
    "    c.curriculum = ('a',)\n    return c\n",
    "    c.stages = {value}\n    return c\n",
    "    c['{value}'] = {value}\n    return c\n",
    "    c.{path}.x = {value}\n    return c\n",
]
ERRORS = ["SystemExit", "RuntimeError", "GeneratorExit", "BaseException", "OSError", "MemoryError"]
SEEDS = [
    SPLIT + b"--config.seed=3",
    SPLIT + b"--config.curriculum=('teacher', 'image')\n--config.model.merge_layers=(1,)",
    SPLIT + b"--config.stages.image.optimizer.learning_rate=nan",
    SPLIT + b"--config.curriculum[0]=x\n--config.a.b=c",
    FILE.encode() + b"    return None" + SPLIT,
    FILE.encode() + b"    c.seed = 1\n    return c" + SPLIT + b"--config.seed\n3",
]


def target(data: bytes, folder: Path) -> None:
    """Loads a configuration, as every command does before anything else."""
    source, _, rest = data.partition(SPLIT)
    words = [word.decode("utf-8", "replace") for word in rest.split(b"\n") if word]
    if not source.strip():
        load(TINY, words)
        return
    if not _harmless(source):
        return
    path = folder / "config.py"
    path.write_bytes(source)
    load(str(path), words)


def _harmless(source: bytes) -> bool:
    """Whether a mutated config file does nothing but assign, raise and return."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # it cannot run either
    calls = {"base", "stage", "source", *ERRORS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) or (
            isinstance(node, ast.ImportFrom) and node.module != "elva_jax.config"
        ):
            return False
        if isinstance(node, (ast.While, ast.For, ast.BinOp, ast.comprehension, ast.Raise)) and (
            not isinstance(node, ast.Raise) or "KeyboardInterrupt" in ast.unparse(node)
        ):
            return False
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name not in calls:
                return False
    return True


def grow(rng: random.Random) -> bytes:
    """Overrides of real and wrong keys with values of every kind, and small config files."""
    words = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        word = rng.choice([*common.WORDS, "image", "3", "1.5", "True"])
        form = rng.choice(["{}", "{}", *FORMS]).format(word, word)
        key = rng.choice(PATHS)
        if rng.random() < 0.1:
            key = rng.choice([key + "x", key + "[0]", key[:-1], key + ".x", "", ".", "[0]", "²"])
        join = rng.choice(["=", "=", "=", "=", "", "\n"])
        words.append(f"{rng.choice(['--', '--', '-', '--no'])}config.{key}{join}{form}")
    source = ""
    if rng.random() < 0.4:
        values = [
            repr(common.value(rng, 2)),
            rng.choice(common.WORDS),
            f"({rng.choice(common.WORDS)},)",
        ]
        source = FILE + rng.choice(BODIES).format(
            path=rng.choice(PATHS), value=rng.choice(values), error=rng.choice(ERRORS)
        )
    return (source + SPLIT.decode() + "\n".join(words)).encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    common.main(target, grow, SEEDS)
