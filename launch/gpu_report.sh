#!/usr/bin/env bash
# Measures one GPU in at most nine minutes, without network or data; try it on a CPU with --dry-run.
# Usage: launch/gpu_report.sh [--output FOLDER] [flags, see --help]; PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m elva_jax.tools.gpu_report "$@"
