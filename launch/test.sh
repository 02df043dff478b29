#!/usr/bin/env bash
# Lint, types, spelling, documentation, then the test suite with one process per core.
# Usage: launch/test.sh [pytest arguments]
# From Python 3.12 on it prints the coverage: sys.monitoring makes it cheap. On 3.11, --cov does, and takes 40 % more time.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
# torch first and pinned: the CPU build, which a bare dependency on torch would not choose.
install_requirements requirements-test.txt requirements.txt
bin=.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/codespell"
"$bin/mypy"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" build --quiet --strict --site-dir "$site"
if "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  export COVERAGE_CORE=sysmon
  set -- --cov "$@"
fi
"$bin/python" -m pytest -n auto --dist worksteal --durations=10 "$@"
