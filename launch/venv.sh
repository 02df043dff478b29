# Sourced by the other scripts: creates .venv in the repository root, and installs the pinned requirements once per change of pins.
# Usage: source launch/venv.sh [extra requirement files]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "elva_jax needs Python 3.11 or newer with the venv module; set PYTHON=/path/to/python3" >&2
  return 1
}

install_requirements() {
  local stamp
  [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
  stamp=.venv/.installed-$(cat "$@" pyproject.toml | cksum | cut -d' ' -f1)
  [ -e "$stamp" ] && return
  echo "Installing $* into .venv …"
  local file
  for file in "$@"; do
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
  done
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
  touch "$stamp"
}
