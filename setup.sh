#!/usr/bin/env bash
# Makes .venv beside this file: the Python 3.7 and the packages that every other script here uses.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: bash setup.sh [--dev] [--system]

Makes .venv beside this file: Python 3.7 with TensorFlow 1.15 and the packages it needs.
Run again, it does only what is missing. Afterwards .venv/bin/python is the interpreter to use.

  --dev       also install what the tests and the linters need
  --system    use the TensorFlow 1.15 and the numpy that this host already has (an Ascend host),
              and install, into .venv, only small packages that it lacks. Later runs keep to it;
              to return to TensorFlow from the package index, delete .venv first
  -h, --help  show this

PYTHON37=/path/to/python3.7 names the interpreter. Without it, one is looked for on PATH, where
pyenv, conda, uv, asdf and mise keep theirs, in /opt and in /usr/local.

Exit codes: 1 installing failed, 2 unknown option, 3 no suitable Python 3.7.
USAGE
}

say() { printf 'setup: %s\n' "$*"; }

fail() {  # fail EXIT_CODE MESSAGE
    printf 'setup: error: %s\n' "$2" >&2
    exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
home=${HOME:-$(unset HOME; echo ~)}  # without $HOME, ~ is what the user database says
venv=$root/.venv
python=$venv/bin/python
log=$venv/setup.log
stamp=$venv/setup.stamp
readonly root home venv python log stamp

# ---------------------------------------------------------------------------- finding Python 3.7

# Every place where an interpreter may be, best first, one a line; not all of them exist.
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

# Both of these say why not in `reason`.
reason=''

# Sets `interpreter`, as which it sees its packages, and `base`, the binary behind it, which stays
# when the environment that somebody has activated goes.
is_python37() {  # is_python37 PATH
    local answer
    # A version manager's shim may exist and still fail, so only an answer counts.
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
        # The interpreter of a .venv that is about to be remade is no base for it.
        if [[ ! -x $candidate || $candidate == "$venv"/* || ${seen[$candidate]:-} ]]; then
            continue
        fi
        seen[$candidate]=yes
        if suits "$candidate"; then return; fi
        tried+="  $candidate $reason"$'\n'
    done < <(printf '%s\n' "$made_from"; candidates 9<&-)

    if [[ $mode == system ]]; then
        missing='Python 3.7 that imports TensorFlow 1.15'
        cure="Three ways on:
  install TensorFlow 1.15 on this host as the guide of your Ascend release says;
  or name the interpreter that has it: PYTHON37=/path/to/python3.7 bash setup.sh --system;
  or take TensorFlow from the package index, for CPU: rm -rf .venv; bash setup.sh"
    else
        missing='Python 3.7 that works, and TensorFlow 1.15 runs on none newer'
        cure='Three ways to get one, after which setup.sh is run again:
  pyenv:   pyenv install 3.7.17
  conda:   conda create --name python37 python=3.7
  source:  ./configure --prefix=/usr/local/python3.7 && make && make install, in the unpacked
           Python-3.7.17.tgz from python.org
One that is elsewhere: PYTHON37=/path/to/python3.7 bash setup.sh'
    fi
    fail 3 "found no $missing. Tried
${tried}and looked on PATH, for pyenv, conda, uv, asdf and mise, in /opt and in /usr/local.
$cure"
}

# ------------------------------------------------------------------------------------ the stamp

# The stamp says what .venv is: where it is, the interpreter it was made from, in which mode, for
# whom, and by which requirements ('unfinished' until all is installed).
write_stamp() { printf '%s\n' "$root" "$interpreter" "$mode" "$dev" "$1" >"$stamp"; }

made_in='' made_from='' made_mode='' made_dev='' made_by=''
read_stamp() {
    local lines=()
    if [[ -f $stamp ]]; then mapfile -t lines <"$stamp"; fi
    made_in=${lines[0]:-} made_from=${lines[1]:-} made_mode=${lines[2]:-}
    made_dev=${lines[3]:-} made_by=${lines[4]:-unfinished}
}

# A set-up that was interrupted, a folder that was moved and an interpreter that has gone all show
# here. The scripts in .venv/bin name its path, so a moved one does not work even if Python does.
is_whole() {
    [[ $made_by != unfinished && $made_in == "$root" && $made_mode == "$mode" ]] &&
        [[ $made_from == "${interpreter:-$made_from}" ]] && "$python" -c '' 2>/dev/null
}

# ----------------------------------------------------------------------------------- installing

# Runs COMMAND with its output in the log; if it fails, shows the end of that and gives up.
quietly() {  # quietly WHAT COMMAND...
    local what=$1 hint=''
    shift
    if "$@" >>"$log" 2>&1 </dev/null; then return; fi
    tail -n 20 "$log" | grep -v 'Location .* is ignored' >&2 || true
    if [[ $mode == own && $(uname -m) == aarch64 ]]; then
        hint='; for aarch64 the index has no TensorFlow 1.15: on an Ascend host use --system'
    fi
    fail 1 "$what failed: see above, and $log for all of it$hint"
}

pip_install() {
    quietly 'installing from the package index' \
        "$python" -m pip --disable-pip-version-check --no-input install "$@"
}

# Prints the entries of packages, with their hashes.
lock_entries() {  # lock_entries NAME...
    awk -v names=" $* " '/^[^ #]/ { split($1, parts, "=="); wanted = index(names, " " parts[1] " ") }
wanted' "$root/requirements.lock"
}

# Older ones do not know the tags of today's wheels, and would compile the packages.
renew_pip() {
    if ! "$python" -c 'import pip, sys
sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (20, 3))' 2>/dev/null; then
        lock_entries pip >"$venv/pip.lock"
        pip_install --require-hashes -r "$venv/pip.lock"
    fi
}

make_venv() {
    say "making .venv from $interpreter"
    rm -rf "$venv"
    mkdir "$venv"
    write_stamp unfinished
    if [[ $mode == own ]]; then
        if [[ -d /usr/local/Ascend || ${ASCEND_OPP_PATH:-} ]]; then
            say 'this looks like an Ascend host: --system would use its own TensorFlow'
        fi
        quietly 'making .venv' "$base" -m venv "$venv"
        return
    fi
    quietly 'making .venv' "$base" -m venv --without-pip "$venv"
    # Lets .venv see the host's packages, after its own. --system-site-packages would not do it for
    # an interpreter that is in a virtual environment itself.
    quietly 'making .venv' "$interpreter" -E -c 'import os, sys
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
        say "installing what this host lacks: ${missing[*]}"
        renew_pip
        lock_entries "${missing[@]}" >"$venv/missing.lock"
        pip_install --require-hashes --no-deps -r "$venv/missing.lock"
    fi
    if [[ $dev == yes ]]; then
        say 'installing requirements-dev.txt, but for requirements.txt'
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
    assert is_own == (sys.argv[1] == "own"), "not where it belongs: " + package.__file__
assert tensorflow.__version__.startswith("1.15."), "not TensorFlow 1.15"
if tuple(map(int, numpy.__version__.split(".")[:2])) >= (1, 20):
    print("numpy", numpy.__version__, "is too new")' "$mode"
    if [[ $(tail -n 1 "$log") == numpy*'too new' ]]; then
        say "warning: $(tail -n 1 "$log"), AutoAugment will fail; 1.16 to 1.19 work"
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

# pip obeys these, and they mean another place than .venv.
unset PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0

# One set-up at a time: a second one would take the first one's work for a half-made .venv.
exec 9<"$root"
if ! flock --nonblock 9; then
    say 'waiting for another setup.sh here to finish'
    flock 9
fi

read_stamp
if [[ $made_mode == system ]]; then mode=system; fi
if [[ $made_dev == yes ]]; then dev=yes; fi
# CANN's packages come through PYTHONPATH; in an environment of our own it can only shadow.
if [[ $mode == own ]]; then unset PYTHONPATH; fi

interpreter='' base=''
if [[ ${PYTHON37:-} ]] && ! is_python37 "$PYTHON37"; then
    fail 3 "PYTHON37=$PYTHON37 $reason: it has to name a Python 3.7 that works"
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
        fail 3 "PYTHON37=$PYTHON37 $reason: --system needs TensorFlow 1.15"
    fi
    make_venv
fi
if [[ $mode == own ]]; then install_own; else install_beside_system; fi
check_tensorflow
write_stamp "$requirements"
say "ready: $python"
