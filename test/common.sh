# Starts runtime/launch.py for the train_*.sh that sources it: source common.sh --kind=... -- "$@"
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
script=$(basename -- "$0")
working_dir=$PWD

# The launcher needs no package, so any Python will do; it finds the one for main.py itself.
for candidate in "$root/.venv/bin/python" python3.7 python3 "${PYTHON37:-}"; do
    # A version manager's shim may exist and still fail, so only an answer counts.
    python=$("$candidate" -c 'import sys
if sys.version_info >= (3, 7): print(sys.executable)' 2>/dev/null) || true
    if [[ $python ]]; then
        cd -- "$root" || exit 1
        exec "$python" -m runtime.launch --script="$script" --working_dir="$working_dir" "$@"
    fi
done
printf '%s: error: there is no Python yet; run "bash setup.sh" once\n' "$script" >&2
exit 1
