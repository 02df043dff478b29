"""`python -m elva_jax.evaluation.lmms.tasks` prints the folder that `--include_path` takes."""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).parent)
