#!/usr/bin/env bash
# bash test.sh [pytest options]   lint and tests
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup requirements.txt
setup requirements-export.txt
setup requirements-dev.txt
cd "$here"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
