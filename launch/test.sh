#!/usr/bin/env bash
# The whole test suite: ruff, then pytest with one process per core. Usage: launch/test.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
# torch first and pinned: the CPU build, which a bare dependency on torch would not choose.
install_requirements requirements-test.txt requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n auto "$@"
