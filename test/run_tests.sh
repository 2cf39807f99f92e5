#!/usr/bin/env bash
# Runs the tests from a fresh clone: sets .venv up first, and needs nothing but the package index.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: bash test/run_tests.sh [--fast] [PYTEST ARGUMENTS...]

  --fast      only the tests that take under 5 seconds each: under 3 minutes in all
  -h, --help  show this

Other arguments go to pytest: bash test/run_tests.sh test/unit/test_setup.py -k help
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Neighbours stay together, as they share what they have set up, until a worker runs out of tests.
# A test that hangs fails.
arguments=(-n 2 --dist worksteal --timeout 900)
for argument in "$@"; do
    case $argument in
        --fast) arguments+=(-m 'not slow') ;;
        -h | --help) usage; exit 0 ;;
        # A test file may be named as it is seen from the caller's folder.
        *.py | *.py::*)
            if [[ -e $PWD/${argument%%::*} ]]; then argument=$PWD/$argument; fi
            arguments+=("$argument")
            ;;
        *) arguments+=("$argument") ;;
    esac
done

bash "$root/setup.sh" --dev
cd "$root"
# TensorFlow's TFLite converter calls a program that lies in .venv/bin.
export PATH=$root/.venv/bin:$PATH
export TF_CPP_MIN_LOG_LEVEL=2
exec python -m pytest "${arguments[@]}"
