#!/usr/bin/env bash
# Tests the plug-in in the real lmms-eval, in an environment of its own: both interfaces, likelihoods, several rounds, two ranks, a killed run, changed weights, and elva serve for its model "openai".
# Usage: launch/test_lmms_eval.sh [folder for the environment, the clips and the results]; by default a temporary one. The status is the number of failures.
# The environment adds requirements-eval.txt and lmms-eval to the packages of .venv, whose own versions stay as they are.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
lmms_eval=0.7.3
install_requirements requirements-test.txt requirements.txt
if [ -n "${1:-}" ]; then
  mkdir -p "$1"
  work=$(cd "$1" && pwd)
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/programs}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}
unset PYTHONPATH  # the installed package is tested, with its entry point and its tasks

python=$work/venv/bin/python
[ -x "$python" ] || .venv/bin/python -m venv "$work/venv"
.venv/bin/python -c 'import site; print(site.getsitepackages()[0])' >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
rm -rf "$work/source" "$work/run"
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE elva_jax "$work/source"
pip() { "$python" -m pip install --quiet --no-compile --disable-pip-version-check "$@"; }
pip -r requirements-eval.txt
pip --no-deps "lmms-eval==$lmms_eval" "python-dotenv==1.2.4"  # its model "openai" imports dotenv
pip --no-deps --force-reinstall "$work/source"
cd "$work"
"$python" "$OLDPWD/tests/evaluation/lmms/real_harness.py" "$work/run"
