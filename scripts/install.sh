#!/usr/bin/env bash
# Installs sglang-respec and everything it needs, pinned, into one environment.
# The Makefile and the Dockerfile both call this file, so what one tests the other runs.
#
#   scripts/install.sh [ENVIRONMENT]      default: .venv
#
# Set PYTHON to choose the interpreter (3.11 or newer); UV_FLAGS adds resolver flags.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv}
python=${PYTHON:-python3}

"$python" - <<'PY' || { echo "respec: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11." >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

stamp="$environment/.respec-installed"
if [ -f "$stamp" ] && [ "$stamp" -nt requirements.lock ] && [ "$stamp" -nt pyproject.toml ]; then
    exit 0
fi

echo "respec: installing into $environment (about 9.5 GB; a minute on a fast line)"
[ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
"$environment/bin/python" -m pip --version >/dev/null 2>&1 || "$environment/bin/python" -m ensurepip >/dev/null
"$environment/bin/python" -c 'import uv' 2>/dev/null || "$environment/bin/python" -m pip install -q uv
uv() { "$environment/bin/python" -m uv "$@"; }

# shellcheck disable=SC2086
uv pip install -q --python "$environment/bin/python" ${UV_FLAGS:-} -r requirements.lock
uv pip install -q --python "$environment/bin/python" --no-deps -e .
touch "$stamp"
