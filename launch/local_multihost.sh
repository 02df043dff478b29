#!/usr/bin/env bash
# Runs N real processes on this machine, as on N hosts, to try a configuration without a cluster.
# Usage: launch/local_multihost.sh N [train|evaluate|generate] [arguments of that command; train is the default]
#   launch/local_multihost.sh 2 --config configs/tiny.py --workdir runs/two --config.mesh.fsdp=2 --config.mesh.data=1
#   launch/local_multihost.sh 2 evaluate --checkpoint runs/two --tasks mvbench --data-root data --output runs/two/scores
#   launch/local_multihost.sh 2 generate --checkpoint runs/two --input questions.jsonl --output answers.jsonl
# Every line of output begins with the index of its process. Ctrl-C reaches all of them; the first that fails ends the others.
# DEVICES: fake devices per process on a CPU (default 1); GPUs are divided evenly. PYTHON: the interpreter (default: .venv, created if necessary).
set -euo pipefail
# Bash cannot trap a signal that it inherited as ignored, as in the background of a script. So it starts once more with the defaults.
if [ -z "${ELVA_SIGNALS_RESET:-}" ]; then
  export ELVA_SIGNALS_RESET=1
  if env --default-signal=INT,TERM true 2>/dev/null; then exec env --default-signal=INT,TERM bash "${BASH_SOURCE[0]}" "$@"; fi
fi
unset ELVA_SIGNALS_RESET
case "${1:-}" in "" | *[!0-9]* | 0) echo "usage: launch/local_multihost.sh N [train|evaluate|generate] [its arguments]" >&2 && exit 2 ;; esac
count=$1 && shift
command=train
case "${1:-}" in train | evaluate | generate) command=$1 && shift ;; esac
if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
else
  here=$PWD
  source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
  install_requirements requirements.txt
  python=$PWD/.venv/bin/python
  cd "$here"
fi

gpus=0
if [ "${JAX_PLATFORMS:-}" != cpu ] && command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi --list-gpus | wc -l); fi
if [ "$gpus" -gt 0 ]; then
  if [ $((gpus % count)) -ne 0 ]; then echo "$gpus GPUs do not divide among $count processes" >&2 && exit 2; fi
else
  export JAX_PLATFORMS=cpu # the processes exchange data through gloo
  export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"
fi
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

set -m # one process group each: otherwise background processes of a shell ignore Ctrl-C, and some would receive it twice
pids=()
for ((i = 0; i < count; i++)); do
  own=()
  if [ "$gpus" -gt 0 ]; then
    share=$((gpus / count))
    own=(--local-devices "$(seq -s, $((i * share)) $((i * share + share - 1)))")
  fi
  "$python" -u -m elva_jax.cli "$command" "$@" --coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$i" "${own[@]}" \
    > >(trap '' INT TERM && exec sed -u "/^\[Gloo\] Rank /d; s/^/[$i] /") 2>&1 &
  pids+=($!)
done

tell() { for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done; }
trap 'tell INT' INT
trap 'tell TERM' TERM
status=0
left=$count
while [ "$left" -gt 0 ]; do
  code=0
  finished=
  wait -n -p finished "${pids[@]}" || code=$?
  if [ "$code" -eq 127 ]; then # bash lost a process that ended while a trap ran, and with it the status
    echo "a process ended with an unknown status; ending the others" >&2
    tell KILL
    exit 1
  fi
  [ -n "${finished:-}" ] || continue # a signal, which the trap has forwarded
  left=$((left - 1))
  rest=()
  for pid in "${pids[@]}"; do if [ "$pid" != "$finished" ]; then rest+=("$pid"); fi; done
  pids=("${rest[@]}")
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    # After 130 and 75 the others have saved and stop with the same status. After anything else they would only wait;
    # in the other commands they ask the questions of the lost process.
    if [ "$command" = train ] && [ "$code" -ne 130 ] && [ "$code" -ne 75 ] && [ "$left" -gt 0 ]; then
      echo "a process ended with status $code; ending the other $left" >&2
      sleep 2 # time for their own messages
      tell KILL
    fi
  fi
done
exit "$status"
