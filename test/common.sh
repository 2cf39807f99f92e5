# Starts runtime/launch.py for a train_*.sh script: source common.sh --kind=... -- "$@"
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
script=$(basename -- "$0")
working_dir=$PWD

# The launcher needs no packages, so any Python from 3.7 on works. It finds the Python of main.py.
for candidate in "$root/.venv/bin/python" python3.7 python3 "${PYTHON37:-}"; do
    # The shim of a version manager may exist and still fail, so the interpreter has to run.
    python=$("$candidate" -c 'import sys
if sys.version_info >= (3, 7): print(sys.executable)' 2>/dev/null) || true
    if [[ $python ]]; then
        cd -- "$root" || exit 1
        exec "$python" -m runtime.launch --script="$script" --working_dir="$working_dir" "$@"
    fi
done
printf '%s: error: no Python found; run "bash setup.sh" once\n' "$script" >&2
exit 1
