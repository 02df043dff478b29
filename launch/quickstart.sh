#!/usr/bin/env bash
# From nothing to a trained tiny ELVA that answers questions about videos: about eleven minutes on two cores after installation.
# Usage: launch/quickstart.sh [--smoke] [WORKDIR] [--config.KEY=VALUE …]
# --smoke: the same steps in one to two minutes, with a few dozen videos and four training steps per stage, for CI; the model learns nothing.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_requirements requirements.txt

config=configs/tiny.py run=runs/tiny data=.data smoke=
if [ "${1:-}" = --smoke ]; then smoke=1 config=configs/tiny.py:smoke run=runs/smoke && shift; fi
case "${1:-}" in "" | --*) ;; *) run=$1 && shift ;; esac
elva=.venv/bin/elva
# Huge pages for the large buffers that every step allocates and frees: an eighth less CPU time with glibc >= 2.35, no effect elsewhere.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

if [ "$smoke" ]; then
  data=$run/data # not .data, where the full quickstart would find a data set that is too small
  export XLA_FLAGS="${XLA_FLAGS:---xla_backend_optimization_level=0}" # nearly all of the time is compilation
  .venv/bin/python - "$data" <<'PYTHON'
import sys
from pathlib import Path
from elva_jax.tools.datasets.moving_shapes import builder, tokenizer
folder = Path(sys.argv[1])
builder.build(folder, "easy", sizes={"image": 48, "train": 48, "validation": 8, "test": 12}, workers=1)
tokenizer.build_for_moving_shapes(folder / "tokenizer")
PYTHON
else
  "$elva" data build moving_shapes/easy --data-dir "$data"
fi
case " $*" in *" --config.data_dir"*) ;; *) set -- --config.data_dir="$data" "$@" ;; esac
"$elva" train --config "$config" --workdir "$run" "$@"
"$elva" evaluate --checkpoint "$run" --split test --json "$run/test.json" --figure "$run/test.png"
expected=docs/studies/quickstart.json # the figures of several seeds; status 3: some of ours lie outside their range
if [ -z "$smoke" ] && [ -f "$expected" ]; then "$elva" study expected "$expected" "$run/test.json" || [ $? -eq 3 ]; fi
"$elva" data show moving_shapes/easy --data-dir "$data" --split test --index 0 --out "$run/example" >/dev/null
question=$(cat "$run/example/question.txt")
echo
echo "Q: $question"
echo "A: $("$elva" generate --checkpoint "$run" --video "$run/example/video.mp4" --prompt "$question")   (truth: $(cat "$run/example/answer.txt"))"
echo
echo "curves:      $run/curves.png"
echo "accuracies:  $run/test.json and $run/test.png"
echo "the video:   $run/example/video.mp4, its frames in $run/example/frames.png"
echo "checkpoint:  $run (use it with: elva generate --checkpoint $run --video FILE --prompt TEXT)"
