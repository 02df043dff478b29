#!/usr/bin/env bash
# Checks and benchmarks on one GPU, up to ten minutes per part. Needs jax[cuda13], and PyTorch with CUDA for the comparisons.
# Usage: launch/test_gpu.sh FOLDER [check|kernels|answer|train]...
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: launch/test_gpu.sh FOLDER [check|kernels|answer|train]...}
shift
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
elva() { python3 -m elva_jax.cli "$@"; }
train() { # NAME CONFIG [flag...]: the training step of NAME
  local name=$1 config=$2
  shift 2
  echo "== $name: $config $*"
  timeout 200 python3 -m elva_jax.cli bench train --config "$config" --json "$out/train_$name.json" "$@" 2>&1 | tail -n 6
}
stage3=configs/elva.py:size=1_5b,stage=3
rows() { echo "--config.stages.stage$1.batch_size=$2 --config.stages.stage$1.optimizer.accumulate=$2"; }

check() { python3 tests/gpu/check.py 2>&1 | tee "$out/check.txt"; }
kernels() {
  elva bench attention --lengths 1024,2560,5120,20480 --json "$out/attention.json"
  elva bench attention --lengths 5120,20480 --heads 28 --kv-heads 4 --json "$out/attention_7b.json"
  elva bench merge --json "$out/merge.json"
  elva bench pytorch --hidden 1536 --intermediate 8960 --layers 28 --vocabulary 151936 --lengths 1024,5120 \
    --json "$out/pytorch.json"
}
answer() {
  elva bench ttft --frames 8,32,64,128 --json "$out/ttft_1_5b.json"
  elva bench ttft --size 7b --frames 8,32,64,128 --json "$out/ttft_7b.json"
}
train_all() {
  train ours "$stage3" $(rows 3 4)
  train ours_no_merging "$stage3" $(rows 3 4) --config.stages.stage3.merging=False "--config.stages.stage3.merge_buckets=()"
  XLA_PYTHON_CLIENT_PREALLOCATE=false train pytorch "$stage3" $(rows 3 4) --trainer pytorch
  train stage1 configs/elva.py:size=1_5b,stage=1 --config.stages.stage1.batch_size=16
  train stage2 configs/elva.py:size=1_5b,stage=2 --config.stages.stage2.batch_size=4
  # Two steps of one program are bitwise equal with this flag.
  (export XLA_FLAGS="--xla_gpu_exclude_nondeterministic_ops=true ${XLA_FLAGS:-}" && train deterministic "$stage3" $(rows 3 4))
  (source launch/env_gpu.sh h100 && train flags "$stage3" $(rows 3 4))
}
for part in "${@:-check kernels answer train}"; do
  for one in $part; do
    case $one in
    check | kernels | answer) "$one" ;;
    train) train_all ;;
    *) echo "unknown part: $one" >&2 && exit 2 ;;
    esac
  done
done
