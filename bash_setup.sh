# Sourced by the other bash scripts: sets PYTHON, and can set up the environment.
# shellcheck shell=bash

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# The Python that runs everything: the one given, that of the active virtual or conda environment, or of .venv here.
if [[ -z "${PYTHON:-}" ]]; then
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
  elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-}" != base ]]; then  # base is active in every conda shell
    PYTHON="$CONDA_PREFIX/bin/python"
  elif [[ -x "$HERE/.venv/bin/python" ]]; then
    PYTHON="$HERE/.venv/bin/python"
  else
    PYTHON=python3
    no_environment=true
  fi
fi

JOIN_TIMEOUT=3600  # seconds that a machine waits for the others to start
SAVE_TIMEOUT=100   # seconds that processes have to save after a signal; slurm/ sends it 120 seconds before the end

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

# Set `launcher`, the command that starts a training: one process, or PROCESSES on each of NODES machines.
# shellcheck disable=SC2034
choose_launcher() {
  local name
  for name in PROCESSES NODES NODE_RANK MAX_RESTARTS; do
    if [[ ! "${!name}" =~ ^(0|[1-9][0-9]{0,3})$ ]]; then    # arithmetic would run commands that stand in it
      echo "error: $name=${!name}: is no whole number; docs/clusters.md explains it" >&2
      exit 2
    fi
  done
  if ((PROCESSES == 0 || NODES == 0 || NODE_RANK >= NODES)); then
    echo "error: PROCESSES=$PROCESSES NODES=$NODES NODE_RANK=$NODE_RANK: PROCESSES and NODES are at least 1, and" \
      "NODE_RANK is 0 on the first machine, 1 on the second, and so on" >&2
    exit 2
  fi
  launcher=("$PYTHON")
  ((PROCESSES * NODES > 1 || MAX_RESTARTS > 0)) || return 0
  export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$SAVE_TIMEOUT"  # torchrun of older PyTorch has no flag for it
  launcher=("$PYTHON" -m utils.common.launch --nproc_per_node "$PROCESSES" --max_restarts "$MAX_RESTARTS")
  if ((NODES == 1)); then
    launcher+=(--standalone)
    return
  fi
  if [[ ! "$RENDEZVOUS" =~ ^.+:[1-9][0-9]{0,4}$ ]] || ((${RENDEZVOUS##*:} > 65535)); then
    echo "error: RENDEZVOUS=$RENDEZVOUS: is no address and port; give those of machine 0, such as gpu1:29500" >&2
    exit 2
  fi
  launcher+=(--nnodes "$NODES" --rdzv_backend c10d --rdzv_id tsan --rdzv_endpoint "$RENDEZVOUS"
    --rdzv_conf "is_host=$((NODE_RANK == 0)),join_timeout=$JOIN_TIMEOUT")
}

# Install what the named requirements files pin and PYTHON lacks; make .venv here if no environment was given or active.
set_up_environment() {
  if [[ "${no_environment:-}" == true ]]; then
    local base
    for base in python3.12 python3.11 python3; do
      "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && break
      base=""
    done
    if [[ -z "$base" ]]; then
      echo "error: Python 3.11 or 3.12 is needed; install one, or activate an environment that has it" >&2
      exit 2
    fi
    "$base" -m venv "$HERE/.venv"
    PYTHON="$HERE/.venv/bin/python"
  fi
  local status=0 file files=()
  for file in "$@"; do files+=(-r "$HERE/$file"); done
  "$PYTHON" "$HERE/utils/common/installed.py" "${files[@]}" || status=$?
  case $status in
    0) ;;
    3)
      echo "installs what $* pin, for $PYTHON; this takes minutes" >&2
      "$PYTHON" -m pip install --quiet --disable-pip-version-check "${files[@]}"
      ;;
    *) exit 2 ;;
  esac
}
