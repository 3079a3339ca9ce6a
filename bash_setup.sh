# Sourced by the other bash scripts: sets PYTHON, and can set up the environment.
# shellcheck shell=bash

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# The Python that runs everything: the active virtual environment's, or that of .venv here.
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
  elif [[ -x "$HERE/.venv/bin/python" ]]; then
    PYTHON="$HERE/.venv/bin/python"
  fi
fi

# Source the file that RECIPE names, if any; a recipe may ask for STAGE, first or second.
source_recipe() {
  # shellcheck disable=SC2034
  STAGE="$1"
  [[ -n "${RECIPE:-}" ]] || return 0
  local file="$RECIPE"
  [[ -f "$file" ]] || file="$HERE/$RECIPE"
  if [[ ! -f "$file" ]]; then
    echo "error: RECIPE=$RECIPE: no such file; give one of $HERE/recipes, or none" >&2
    exit 2
  fi
  # shellcheck source=/dev/null
  source "$file"
}

# Set `launcher`, the command that starts a training: in one process, or in one for each GPU.
# shellcheck disable=SC2034
choose_launcher() {
  if [[ ! "$PROCESSES" =~ ^[1-9][0-9]{0,3}$ ]]; then    # arithmetic would run commands that stand in it
    echo "error: PROCESSES=$PROCESSES: is no number of processes; give one for each GPU, such as 2" >&2
    exit 2
  fi
  launcher=("$PYTHON")
  if ((PROCESSES > 1)); then
    launcher=(env "PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m utils.common.launch
      --standalone --nproc_per_node "$PROCESSES")
  fi
}

# Make .venv here unless a virtual environment is active, and install the named requirements files.
set_up_environment() {
  if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    local base
    for base in python3.12 python3.11 python3; do
      "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && break
      base=""
    done
    if [[ -z "$base" ]]; then
      echo "error: Python 3.11 or 3.12 is needed; install one, or activate a virtual environment that has it" >&2
      exit 2
    fi
    [[ -x "$HERE/.venv/bin/python" ]] || "$base" -m venv "$HERE/.venv"
    PYTHON="$HERE/.venv/bin/python"
  fi
  local file
  for file in "$@"; do
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$HERE/$file"
  done
}
