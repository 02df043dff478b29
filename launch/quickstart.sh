#!/usr/bin/env bash
# From nothing to a trained tiny ELVA that answers questions about videos: about twelve minutes on two cores after installation.
# Usage: launch/quickstart.sh [WORKDIR] [--config.KEY=VALUE …]
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_requirements requirements.txt

run=runs/tiny
case "${1:-}" in "" | --*) ;; *) run=$1 && shift ;; esac
elva=.venv/bin/elva
# Huge pages for the large buffers that every step takes and gives back: an eighth less CPU time with glibc >= 2.35, nothing elsewhere.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

"$elva" data build moving_shapes/easy --data-dir .data
"$elva" train --config configs/tiny.py --workdir "$run" "$@"
"$elva" evaluate --checkpoint "$run" --split test --json "$run/test.json" --figure "$run/test.png"
"$elva" data show moving_shapes/easy --data-dir .data --split test --index 0 --out "$run/example" >/dev/null
question=$(cat "$run/example/question.txt")
echo
echo "Q: $question"
echo "A: $("$elva" generate --checkpoint "$run" --video "$run/example/video.mp4" --prompt "$question")   (truth: $(cat "$run/example/answer.txt"))"
echo
echo "curves:      $run/curves.png"
echo "accuracies:  $run/test.json and $run/test.png"
echo "the video:   $run/example/video.mp4, its frames in $run/example/frames.png"
echo "checkpoint:  $run (use it with: elva generate --checkpoint $run --video FILE --prompt TEXT)"
