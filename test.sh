#!/usr/bin/env bash
# bash test.sh [pytest options]   lint and tests, these in a process per core with a thread each
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup requirements.txt
setup requirements-export.txt
setup requirements-ray.txt
setup requirements-dev.txt
cd "$here"
"$python" -m ruff check .
"$python" -m ruff format --check .
cores=$("$python" -c 'import os; print(min(os.cpu_count(), 8))')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest --numprocesses "$cores" --dist worksteal "$@"
