#!/usr/bin/env bash
# Creates .venv next to this file: the Python 3.7 and the packages that all other scripts use.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: bash setup.sh [--dev] [--system]

Creates .venv next to this file: Python 3.7 with TensorFlow 1.15 and the packages it needs.
A repeated run installs only what is missing. Afterwards, use .venv/bin/python.

  --dev       also install the packages of the tests and linters
  --system    use the TensorFlow 1.15 and numpy of this host (an Ascend host), and install only
              missing small packages into .venv. Later runs keep this mode; to install TensorFlow
              from the package index again, delete .venv first
  -h, --help  show this help

PYTHON37=/path/to/python3.7 selects the interpreter. By default, setup.sh searches PATH, the
directories of pyenv, conda, uv, asdf and mise, /opt and /usr/local.

Exit codes: 1 installation failed, 2 unknown option, 3 no suitable Python 3.7.
USAGE
}

say() { printf 'setup: %s\n' "$*"; }

fail() {  # fail EXIT_CODE MESSAGE
    printf 'setup: error: %s\n' "$2" >&2
    exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
home=${HOME:-$(unset HOME; echo ~)}  # without $HOME, ~ comes from the user database
venv=$root/.venv
python=$venv/bin/python
log=$venv/setup.log
stamp=$venv/setup.stamp
readonly root home venv python log stamp

# ---------------------------------------------------------------------------- finding Python 3.7

# Prints the paths where an interpreter may be, one a line, preferred paths first. Not all exist.
candidates() {
    local name prefix prefixes
    for name in python3.7 python3 python; do type -ap "$name" || true; done
    shopt -s nullglob
    prefixes=(
        {"${PYENV_ROOT:-}","$home"/.pyenv,"$(pyenv root 2>/dev/null || true)"}/versions/*
        {"${CONDA_PREFIX:-}","${MAMBA_ROOT_PREFIX:-}"}{,/envs/*}
        "$(conda info --base 2>/dev/null || true)"{,/envs/*}
        {"$home",/opt,/usr/local}/{*conda*,*mamba*,miniforge*}{,/envs/*}
        "$home"/.conda/envs/*
        "$home"/.local/share/{uv/python,mise/installs/python}/*
        "${ASDF_DATA_DIR:-$home/.asdf}"/installs/python/*
        {,/usr,/usr/local,/opt,/opt/python}{,/*}
    )
    for prefix in "${prefixes[@]}"; do echo "$prefix/bin/python3.7"; done
    uv python find --system 3.7 2>/dev/null || true
}

# Set by the two checks below when they fail.
reason=''

# Sets `interpreter`, the path through which Python finds its packages, and `base`, the binary
# behind it, which still exists after an activated environment is deleted.
is_python37() {  # is_python37 PATH
    local answer
    # The shim of a version manager may exist and still fail, so the interpreter has to run.
    mapfile -t answer < <("$1" -E -c 'import os, sys
print("%d.%d" % sys.version_info[:2])
print(sys.executable)
print(os.path.realpath(sys.executable))' 2>/dev/null </dev/null)
    reason=${answer[0]:+is Python ${answer[0]}}
    reason=${reason:-does not run}
    [[ ${answer[0]:-} == 3.7 ]] || return 1
    interpreter=${answer[1]} base=${answer[2]}
    if [[ $mode == own ]]; then interpreter=$base; fi
}

has_tensorflow() {  # has_tensorflow PATH
    local version
    version=$("$1" -c 'import tensorflow; print(tensorflow.__version__)' 2>/dev/null </dev/null) ||
        version='none that can be imported'
    reason="has TensorFlow $version"
    reason=${reason/TensorFlow none/no TensorFlow}
    [[ $version == 1.15.* ]]
}

suits() { is_python37 "$1" && { [[ $mode == own ]] || has_tensorflow "$1"; }; }

find_python() {
    local candidate tried='' missing cure
    declare -A seen=()
    while IFS= read -r candidate; do
        # The .venv may be deleted and created again, so its own interpreter cannot be its base.
        if [[ ! -x $candidate || $candidate == "$venv"/* || ${seen[$candidate]:-} ]]; then
            continue
        fi
        seen[$candidate]=yes
        if suits "$candidate"; then return; fi
        tried+="  $candidate: $reason"$'\n'
    done < <(printf '%s\n' "$made_from"; candidates 9<&-)

    if [[ $mode == system ]]; then
        missing='no Python 3.7 that imports TensorFlow 1.15'
        cure="Choose one:
  install TensorFlow 1.15 on this host, see the guide of your Ascend release;
  or select the interpreter that has it: PYTHON37=/path/to/python3.7 bash setup.sh --system;
  or install TensorFlow from the package index, for CPU: rm -rf .venv; bash setup.sh"
    else
        missing='no working Python 3.7 (TensorFlow 1.15 does not support newer versions)'
        cure='Install one, then run setup.sh again:
  pyenv:   pyenv install 3.7.17
  conda:   conda create --name python37 python=3.7
  source:  ./configure --prefix=/usr/local/python3.7 && make && make install, in the unpacked
           Python-3.7.17.tgz from python.org
Or select an installed one: PYTHON37=/path/to/python3.7 bash setup.sh'
    fi
    fail 3 "$missing found. Tried:
${tried}Searched: PATH, the directories of pyenv, conda, uv, asdf and mise, /opt and /usr/local.
$cure"
}

# ------------------------------------------------------------------------------------ the stamp

# The stamp describes .venv: its location, its interpreter, its mode, whether it has the packages of
# --dev, and the hash of its requirements ('unfinished' until everything is installed).
write_stamp() { printf '%s\n' "$root" "$interpreter" "$mode" "$dev" "$1" >"$stamp"; }

made_in='' made_from='' made_mode='' made_dev='' made_by=''
read_stamp() {
    local lines=()
    if [[ -f $stamp ]]; then mapfile -t lines <"$stamp"; fi
    made_in=${lines[0]:-} made_from=${lines[1]:-} made_mode=${lines[2]:-}
    made_dev=${lines[3]:-} made_by=${lines[4]:-unfinished}
}

# Fails after an interrupted installation, and if .venv was moved or its interpreter is gone. In a
# moved .venv Python may still run, but the scripts in .venv/bin contain the old path.
is_whole() {
    [[ $made_by != unfinished && $made_in == "$root" && $made_mode == "$mode" ]] &&
        [[ $made_from == "${interpreter:-$made_from}" ]] && "$python" -c '' 2>/dev/null
}

# ----------------------------------------------------------------------------------- installing

# Runs COMMAND with its output in the log; if it fails, shows the last lines of the log and exits.
quietly() {  # quietly WHAT COMMAND...
    local what=$1 hint=''
    shift
    if "$@" >>"$log" 2>&1 </dev/null; then return; fi
    tail -n 20 "$log" | grep -v 'Location .* is ignored' >&2 || true
    if [[ $mode == own && $(uname -m) == aarch64 ]]; then
        hint='; the index has no TensorFlow 1.15 for aarch64, use --system on an Ascend host'
    fi
    fail 1 "$what failed: see above; the full log is $log$hint"
}

pip_install() {
    quietly 'installing from the package index' \
        "$python" -m pip --disable-pip-version-check --no-input install "$@"
}

# Prints the entries of packages in requirements.lock, with their hashes.
lock_entries() {  # lock_entries NAME...
    awk -v names=" $* " '/^[^ #]/ { split($1, parts, "=="); wanted = index(names, " " parts[1] " ") }
wanted' "$root/requirements.lock"
}

# A pip below 20.3 does not know the tags of today's wheels and would compile the packages.
renew_pip() {
    if ! "$python" -c 'import pip, sys
sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (20, 3))' 2>/dev/null; then
        lock_entries pip >"$venv/pip.lock"
        pip_install --require-hashes -r "$venv/pip.lock"
    fi
}

make_venv() {
    say "creating .venv from $interpreter"
    rm -rf "$venv"
    mkdir "$venv"
    write_stamp unfinished
    if [[ $mode == own ]]; then
        if [[ -d /usr/local/Ascend || ${ASCEND_OPP_PATH:-} ]]; then
            say 'this looks like an Ascend host; use --system for its own TensorFlow'
        fi
        quietly 'creating .venv' "$base" -m venv "$venv"
        return
    fi
    quietly 'creating .venv' "$base" -m venv --without-pip "$venv"
    # Adds the host's packages to .venv, after its own. --system-site-packages does not work for an
    # interpreter that is itself in a virtual environment.
    quietly 'creating .venv' "$interpreter" -E -c 'import os, sys
with open(os.path.join(sys.argv[1], "lib/python3.7/site-packages/host.pth"), "w") as pth:
    for path in sys.path:
        if os.path.basename(path) in ("site-packages", "dist-packages"):
            pth.write("import site; site.addsitedir(%r)\n" % path)' "$venv"
}

install_own() {
    local name=requirements suffix=txt hashes=()
    if [[ $dev == yes ]]; then name='requirements-dev'; fi
    if [[ $(uname -m) == x86_64 ]]; then suffix=lock hashes=(--require-hashes); fi
    say "installing $name.$suffix (about half a minute)"
    renew_pip
    pip_install ${hashes[@]+"${hashes[@]}"} -r "$root/$name.$suffix"
    quietly "'pip check'" "$python" -m pip check
}

install_beside_system() {
    local pair missing=()
    for pair in absl:absl-py PIL:pillow tqdm:tqdm; do
        if ! "$python" -c "import ${pair%:*}" 2>/dev/null; then missing+=("${pair#*:}"); fi
    done
    if (( ${#missing[@]} )); then
        say "installing packages missing on this host: ${missing[*]}"
        renew_pip
        lock_entries "${missing[@]}" >"$venv/missing.lock"
        pip_install --require-hashes --no-deps -r "$venv/missing.lock"
    fi
    if [[ $dev == yes ]]; then
        say 'installing requirements-dev.txt without requirements.txt'
        renew_pip
        grep -v '^-r' "$root/requirements-dev.txt" >"$venv/requirements-dev.txt"
        pip_install -r "$venv/requirements-dev.txt"
    fi
}

check_tensorflow() {
    quietly 'importing TensorFlow' "$python" -c 'import sys, numpy, tensorflow
for package in numpy, tensorflow:
    print(package.__version__, package.__file__)
    is_own = package.__file__.startswith(sys.prefix)
    assert is_own == (sys.argv[1] == "own"), "installed in the wrong place: " + package.__file__
assert tensorflow.__version__.startswith("1.15."), "not TensorFlow 1.15"
if tuple(map(int, numpy.__version__.split(".")[:2])) >= (1, 20):
    print("numpy", numpy.__version__, "is too new")' "$mode"
    if [[ $(tail -n 1 "$log") == numpy*'too new' ]]; then
        say "warning: $(tail -n 1 "$log") for AutoAugment; use 1.16 to 1.19"
    fi
}

# ------------------------------------------------------------------------------------------ main

dev=no mode=own
for argument in "$@"; do
    case $argument in
        --dev) dev=yes ;;
        --system) mode=system ;;
        -h | --help) usage; exit 0 ;;
        *) fail 2 "unknown option '$argument' (--help lists them)" ;;
    esac
done

# These variables would make pip install outside of .venv.
unset PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0

# A lock, because a second setup.sh would mistake the first one's work for an interrupted run.
exec 9<"$root"
if ! flock --nonblock 9; then
    say 'waiting for another setup.sh in this directory to finish'
    flock 9
fi

read_stamp
if [[ $made_mode == system ]]; then mode=system; fi
if [[ $made_dev == yes ]]; then dev=yes; fi
# CANN's packages come through PYTHONPATH. In mode own, it could only shadow installed packages.
if [[ $mode == own ]]; then unset PYTHONPATH; fi

interpreter='' base=''
if [[ ${PYTHON37:-} ]] && ! is_python37 "$PYTHON37"; then
    fail 3 "PYTHON37=$PYTHON37: $reason; set it to a working Python 3.7"
fi

requirements=$(cat "$root"/requirements{,-dev,-export,-report}.{txt,lock} | sha256sum)
if is_whole && [[ $made_by == "$requirements" && $made_dev == "$dev" ]]; then
    say "ready: $python"
    exit 0
fi

if is_whole; then
    interpreter=$made_from
    write_stamp unfinished
else
    if [[ ! ${PYTHON37:-} ]]; then
        find_python
    elif ! suits "$PYTHON37"; then
        fail 3 "PYTHON37=$PYTHON37: $reason; --system needs TensorFlow 1.15"
    fi
    make_venv
fi
if [[ $mode == own ]]; then install_own; else install_beside_system; fi
check_tensorflow
write_stamp "$requirements"
say "ready: $python"
