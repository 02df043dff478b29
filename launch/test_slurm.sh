#!/usr/bin/env bash
# Tries launch/slurm.sbatch and mpirun on this machine: a real Slurm of two nodes, and Open MPI. Takes a few minutes; as root on Debian or Ubuntu:
#   apt-get install slurm-wlm munge openmpi-bin && PYTHON=.venv/bin/python launch/test_slurm.sh
# Nodes are processes of slurmd without cgroups. Adds their names to /etc/hosts while it runs. Prints one line per case; the status is the number of failures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PYTHON=${PYTHON:-$PWD/.venv/bin/python} KIND=a100 JAX_PLATFORMS=cpu PYTHONPATH=$PWD PYTHONUNBUFFERED=1
dir=$(mktemp -d)
export SLURM_CONF=$dir/slurm.conf
"$PYTHON" -c "import elva_jax.cli" || { echo "PYTHON=$PYTHON cannot import this package; run launch/venv.sh, or set PYTHON" >&2 && exit 1; }
for tool in slurmctld slurmd munge mpirun; do command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install slurm-wlm munge openmpi-bin" >&2 && exit 1; }; done
host=$(hostname -s)
failures=0
began=$SECONDS

stop() {
  for pid in "$dir"/*.pid; do [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null; done
  sed -i '/# elva test_slurm$/d' /etc/hosts 2>/dev/null || { sed '/# elva test_slurm$/d' /etc/hosts >"$dir/hosts" && cat "$dir/hosts" >/etc/hosts; }
}
trap stop EXIT

cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=8000
PartitionName=all Nodes=n1,n2 Default=YES OverSubscribe=YES MaxTime=60 State=UP
END
mkdir -p "$dir/state" /run/munge && chown munge /run/munge
echo "127.0.0.1 n1 n2 # elva test_slurm" >>/etc/hosts
munge -n 2>/dev/null | unmunge >/dev/null 2>&1 || runuser -u munge -- munged --force
slurmctld -c && slurmd -N n1 && slurmd -N n2
for _ in $(seq 20); do [ "$(sinfo -h -t idle -o %D)" = 2 ] && break; sleep 1; done
sinfo -h -o "%D nodes %T"

check() { # check NAME PATTERN FILE [status]: whether the file has the pattern
  if grep -qE "$2" "$3"; then echo "ok    $1"; else echo "FAIL  $1: no '$2' in $3" && tail -n 5 "$3" && failures=$((failures + 1)); fi
}
submit() { # submit NAME [sbatch flags] -- [arguments of elva train]: prints the id of the job
  local name=$1 flags=() && shift
  while [ "$1" != -- ]; do flags+=("$1") && shift; done
  shift
  sbatch --parsable --nodes=2 --gpus-per-node=0 --cpus-per-task=1 --mem=3000 --output="$dir/$name.log" "${flags[@]}" launch/slurm.sbatch \
    --config configs/tiny.py --workdir "$dir/$name" --config.data_dir="$data" --config.mesh.data=2 --config.mesh.fsdp=1 \
    --config.log.every=2 --config.checkpoint.every=1000 --heartbeat-timeout 10 "$@"
}
await() { # await SECONDS PATTERN FILE
  for _ in $(seq "$1"); do grep -qE "$2" "$3" 2>/dev/null && return; sleep 1; done
  return 1
}
finished() { for _ in $(seq "$1"); do case "$(squeue -h -j "$2" -o %T 2>/dev/null)" in "" | COMPLETED | FAILED | CANCELLED) return ;; esac; sleep 1; done; return 1; }

data=${DATA:-$dir/data}
[ -d "$data" ] || "$PYTHON" -m elva_jax.cli data build moving_shapes/easy --data-dir "$data" >"$dir/data.log" 2>&1

# Two tasks meet and train; SIGTERM before the limit: saved, 75, requeued; resumed after Slurm's pause.
job=$(submit term --time=4 --signal=TERM@90 --)
await 240 "requeued as job" "$dir/term.log"
check "two tasks meet" "2 device\(s\) of 2 process\(es\)" "$dir/term.log"
check "SIGTERM before the limit: saved" "stopped at step [0-9]+ of [0-9]+, saved at" "$dir/term.log"
check "status 75: requeued" "requeued as job $job" "$dir/term.log"
scontrol update JobId="$job" StartTime=now 2>/dev/null
scontrol release "$job" 2>/dev/null
await 200 "continues from step" "$dir/term.log"
check "the requeued job resumes" "continues from step" "$dir/term.log"
scancel --full "$job"
finished 30 "$job"

# A time limit shorter than the script's own --signal=TERM@600.
job=$(submit short --time=2 --)
finished 120 "$job"
check "a time limit shorter than --signal: said, not requeued" "not requeued: give a longer --time" "$dir/short.log"

# A killed task: the other one ends, and the job fails.
job=$(submit killed --time=30 --)
await 120 "[0-9]+/[0-9]+  " "$dir/killed.log"
victim=$(pgrep -f "cli train .*--workdir $dir/killed" | tail -n 1)
if [ -n "$victim" ] && kill -KILL "$victim"; then echo "ok    a task was killed while it trained"; else echo "FAIL  no task to kill" && failures=$((failures + 1)); fi
finished 170 "$job"
check "the killed task is reported" "task .*: Killed" "$dir/killed.log"
check "the other task says why it ends" "another process has ended" "$dir/killed.log"
if grep -q "requeued as" "$dir/killed.log"; then echo "FAIL  requeued after a crash" && failures=$((failures + 1)); fi

# scancel: no process is left.
job=$(submit cancelled --time=30 --)
await 120 "[0-9]+/[0-9]+  " "$dir/cancelled.log"
scancel "$job"
finished 60 "$job"
sleep 8
if pgrep -f "cli train .*--workdir $dir/cancelled" >/dev/null; then echo "FAIL  scancel leaves processes" && failures=$((failures + 1)); else echo "ok    scancel leaves no process"; fi

# An evaluation: the other task asks the questions of a killed one; nothing is asked twice.
"$PYTHON" - "$dir" >"$dir/write.log" 2>&1 <<'END'
import json, pathlib, sys
from elva_jax import testing
root = pathlib.Path(sys.argv[1])
testing.tiny_model().save_pretrained(root / "tiny")
folder = root / "bench" / "videomme" / "data"
folder.mkdir(parents=True)
fields = {"question": "What moves?", "options": ["red", "green"], "answer": "A"}
for i in range(60):
    testing.write_video(folder / f"{i}.mp4", testing.tiny_video(seed=i))
records = [{"videoID": str(i), "question_id": str(i)} | fields for i in range(60)]
(folder.parent / "videomme.json").write_text(json.dumps(records))
END
job=$(sbatch --parsable --nodes=2 --gpus-per-node=0 --cpus-per-task=1 --mem=3000 --output="$dir/scores.log" --time=30 launch/slurm.sbatch \
  evaluate --checkpoint "$dir/tiny" --tasks videomme --data-root "$dir/bench" --output "$dir/scores" --batch-size 2)
answers=$dir/scores/videomme/answers/0001-of-0002/answers.jsonl
for _ in $(seq 2400); do [ "$(cat "$answers" 2>/dev/null | wc -l)" -gt 2 ] && break; sleep 0.1; done
# The task whose share it is, by its number in its environment.
for pid in $(pgrep -f "cli evaluate .*--output $dir/scores"); do if tr '\0' '\n' <"/proc/$pid/environ" | grep -qx SLURM_PROCID=1; then kill -KILL "$pid"; fi; done
finished 240 "$job"
check "evaluation: a task was killed" "task 1: Killed" "$dir/scores.log"
check "evaluation: the other one asks the rest" "60 of 60 questions" "$dir/scores.log"
if [ "$(cat "$dir"/scores/videomme/answers/*/answers.jsonl | grep -o '"key": "[0-9]*"' | sort -u | wc -l)" = 60 ] && [ "$(cat "$dir"/scores/videomme/answers/*/answers.jsonl | grep -c '"key"')" = 60 ]; then
  echo "ok    evaluation: every question is answered once"
else
  echo "FAIL  evaluation: not every question is answered once" && failures=$((failures + 1))
fi

# mpirun: its pseudo-terminal gets lines, no cursor movement.
timeout 300 mpirun --allow-run-as-root --oversubscribe -np 2 "$PYTHON" -m elva_jax.cli train --config configs/tiny.py --workdir "$dir/mpi" \
  --config.data_dir="$data" --config.mesh.data=2 --config.mesh.fsdp=1 --config.stages.teacher.steps=4 --config.curriculum='("teacher",)' \
  --config.log.every=2 >"$dir/mpi.log" 2>&1
check "mpirun trains" "teacher 4/4" "$dir/mpi.log"
if grep -q $'\e' "$dir/mpi.log"; then echo "FAIL  terminal control codes under mpirun" && failures=$((failures + 1)); else echo "ok    mpirun: no terminal control codes"; fi

echo "$failures failure(s), $((SECONDS - began)) s; logs in $dir"
exit "$failures"
