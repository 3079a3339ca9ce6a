#!/usr/bin/env bash
# Set up the environment and run the test suite; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

set_up_environment requirements.txt requirements-preprocess.txt requirements-dev.txt
cd "$HERE"
"$PYTHON" -m pytest --numprocesses 2 --dist loadfile "$@"
