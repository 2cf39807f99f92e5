#!/usr/bin/env bash
# Sets up .venv and runs the tests. A fresh clone and the package index are enough.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: bash test/run_tests.sh [--fast] [PYTEST ARGUMENTS...]

  --fast      run only tests that take under 5 seconds each; under 3 minutes in total
  -h, --help  show this help

Other arguments are passed to pytest: bash test/run_tests.sh test/unit/test_setup.py -k help
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# worksteal keeps neighboring tests, which share fixtures, on one worker until another is idle. The
# timeout fails a test that hangs.
arguments=(-n 2 --dist worksteal --timeout 900)
for argument in "$@"; do
    case $argument in
        --fast) arguments+=(-m 'not slow') ;;
        -h | --help) usage; exit 0 ;;
        # Paths of test files may be relative to the caller's directory.
        *.py | *.py::*)
            if [[ -e $PWD/${argument%%::*} ]]; then argument=$PWD/$argument; fi
            arguments+=("$argument")
            ;;
        *) arguments+=("$argument") ;;
    esac
done

bash "$root/setup.sh" --dev
cd "$root"
# TensorFlow's TFLite converter calls a program in .venv/bin.
export PATH=$root/.venv/bin:$PATH
export TF_CPP_MIN_LOG_LEVEL=2
exec python -m pytest "${arguments[@]}"
