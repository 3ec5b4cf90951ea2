# Sourced by run.sh and test.sh with the requirement files as arguments: makes .venv, installs them unless they are
# installed already, and sets $here and $python.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$here/.venv/bin/python"

setup() {
  local wanted="$here/.venv/$1.installed" file
  if cat "${@/#/$here/}" | cmp --silent - "$wanted"; then return; fi
  if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Error: Python 3.10 or later is needed; set PYTHON to its path" >&2
    exit 1
  fi
  echo "Installing $* into .venv" >&2
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$here/.venv"
  for file in "$@"; do
    "$python" -m pip install --quiet --disable-pip-version-check --requirement "$here/$file"
  done
  cat "${@/#/$here/}" > "$wanted"
}
