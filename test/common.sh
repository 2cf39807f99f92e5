# What the four train_*.sh share: options in, one process a device, result lines out. Sourced.
#
# A script sets what it is before, and then calls `train_case "$@"`.
# shellcheck shell=bash
set -euo pipefail
: "${summary:?}"         # what it does, for --help
: "${kind:?}"            # full or performance
: "${rank_size:?}"       # how many devices, unless --rank_size says
: "${default_steps?}"    # steps to train, unless --train_steps or --train_epochs says; may be empty

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
script=$(basename -- "$0")
readonly root script
readonly SEVERAL_HOSTS_FIRST_PORT=23450   # of TensorFlow's workers, one port a rank

usage() {
    cat <<USAGE
Usage: bash $script --data_path=DIR [OPTIONS] [-- FLAGS OF main.py]

$summary
On an Ascend host that is done with npu_bridge, elsewhere with stock TensorFlow.

  --data_path=DIR         the TFRecord shards; required
  --output_path=DIR       results of rank N go to DIR/N/, train_N.log first of all; default: test/output
  --model_name=NAME       the network; default: efficientnet-condconv-b0-8e
  --batch_size=N          images per step and device; default: main.py's
  --train_steps=N         steps to train in all${default_steps:+; default: $default_steps}
  --train_epochs=N        the same in epochs
  --ckpt_path=PATH        checkpoint, or its folder, whose weights a new run starts with
  --precision_mode=MODE   allow_mix_precision, force_fp32, ...; default: main.py's
  --over_dump=True        dump operators that overflow to DIR/overflow_dump
  --data_dump_flag=True   dump tensors to DIR/data_dump
  --data_dump_step=STEPS  of these steps, like 0|5|10-20; default: 0
  --profiling=True        profile to DIR/profiling
  --autotune=True         tune operators first; results to DIR/tuning
USAGE
    if ((rank_size > 1)); then
        cat <<USAGE
  --rank_size=N           devices (without NPUs: processes) in all; default: $rank_size
  --hosts=A,B             servers that share them evenly; started on each with the same options. The
                          first one's DIR has to be seen by all
  --host_index=N          which of the hosts this is, from 0; default: found by its address
  --bind_core=True        share out the processor's cores: each rank keeps to its own
USAGE
    fi
    cat <<USAGE
  -h, --help              show this

What follows -- goes to main.py as it is; main.py --help lists its flags.

Ctrl-C and SIGTERM are passed on: main.py saves a checkpoint at the end of its step. The exit code is
130 or 143 then, and 0 where main.py's --max_hours or --stop_at ends the run.
USAGE
}

fail() { printf '%s: error: %s\n' "$script" "$1" >&2; exit "${2:-1}"; }

# ------------------------------------------------------------------------------------- options

data_path='' output_path=$root/test/output model_name='' batch_size='' train_steps='' train_epochs=''
ckpt_path='' precision_mode='' over_dump='' data_dump_flag='' data_dump_step='' profiling=''
autotune='' hosts='' host_index='' bind_core=''
main_flags=()

read_options() {
    local known key value
    known=' data_path output_path model_name batch_size train_steps train_epochs ckpt_path '
    known+='precision_mode over_dump data_dump_flag data_dump_step profiling autotune '
    if ((rank_size > 1)); then known+='rank_size hosts host_index bind_core '; fi
    while (($#)); do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --) shift; main_flags=("$@"); break ;;
            --*=*) key=${1%%=*} key=${key#--} value=${1#*=} ;;
            *) fail "'$1' is no option; options look like --data_path=DIR (--help lists them)" ;;
        esac
        [[ $key =~ ^[a-z_]+$ && $known == *" $key "* ]] ||
            fail "there is no option --$key (--help lists them)"
        [[ $value ]] || fail "--$key is empty; give it a value or leave it out"
        printf -v "$key" %s "$value"
        shift
    done
    check_options
}

check_options() {
    local key flag
    [[ $data_path ]] || fail '--data_path is not given; name the folder of the TFRecord shards'
    for key in batch_size train_steps rank_size; do
        [[ ! ${!key} || ${!key} =~ ^[1-9][0-9]{0,8}$ ]] ||
            fail "--$key=${!key} is not a whole number from 1 on"
    done
    for flag in ${main_flags[@]+"${main_flags[@]}"}; do
        [[ $flag != -model_dir* && $flag != --model_dir* ]] ||
            fail "$flag after -- is not where the results would be looked for; use --output_path"
    done
    [[ $output_path != '~'* ]] ||
        fail "--output_path=$output_path would be a folder of the name ~, which shells leave alone after a =; write \$HOME or the whole path"
    ((${rank_size:-1} <= 4096)) || fail "--rank_size=$rank_size is above 4096; ask for fewer"
    [[ ! $host_index || $host_index =~ ^[0-9]{1,4}$ ]] ||
        fail "--host_index=$host_index is not a whole number from 0 on"
    [[ ! $train_epochs || ($train_epochs =~ ^[0-9]*\.?[0-9]+$ && $train_epochs =~ [1-9]) ]] ||
        fail "--train_epochs=$train_epochs is not a number above 0"
    [[ ! $train_steps || ! $train_epochs ]] ||
        fail '--train_steps and --train_epochs are both given; keep one of them'
    if [[ ! $train_epochs ]]; then train_steps=${train_steps:-$default_steps}; fi
    for key in over_dump data_dump_flag profiling autotune bind_core; do
        case ${!key} in
            '' | True | true | 1) ;;
            False | false | 0) printf -v "$key" %s '' ;;
            *) fail "--$key=${!key} is neither True nor False" ;;
        esac
    done
    [[ ! $over_dump || ! $data_dump_flag ]] ||
        fail '--over_dump and --data_dump_flag exclude each other; keep one of them'
    [[ ! $data_dump_step || $data_dump_step =~ ^[0-9]+(-[0-9]+)?(\|[0-9]+(-[0-9]+)?)*$ ]] ||
        fail "--data_dump_step=$data_dump_step is not like 0|5|10-20"
    if [[ $precision_mode ]]; then
        case $precision_mode in
            allow_mix_precision | allow_mix_precision_fp16 | allow_mix_precision_bf16 | \
                allow_fp32_to_fp16 | allow_fp32_to_bf16 | force_fp16 | force_fp32 | \
                cube_fp16in_fp32out | must_keep_origin_dtype) ;;
            *) fail "--precision_mode=$precision_mode does not exist; see main.py --help" ;;
        esac
    fi
}

# Sets `python`: what PYTHON37 says, the .venv of setup.sh, or the host's own.
find_python() {
    if [[ ${PYTHON37:-} ]]; then
        python=$PYTHON37
    elif [[ -x $root/.venv/bin/python ]]; then
        python=$root/.venv/bin/python
    elif python3.7 -c 'import tensorflow' >/dev/null 2>&1; then
        python=python3.7
    else
        fail 'there is no Python 3.7 with TensorFlow yet; run "bash setup.sh" once (on an Ascend host "bash setup.sh --system")'
    fi
}

# ------------------------------------------------------------------------- ranks, hosts, devices

# Sets `num_ranks_here` and `first_rank`, and where there are several hosts `host_list`.
place_ranks() {
    host_list=() num_ranks_here=$rank_size first_rank=0
    [[ $hosts ]] || return 0
    [[ $hosts =~ ^[][A-Za-z0-9.:_-]+(,[][A-Za-z0-9.:_-]+)*$ ]] || fail "--hosts=$hosts is not like 10.0.0.1,10.0.0.2"
    IFS=, read -ra host_list <<<"$hosts"
    ((rank_size % ${#host_list[@]} == 0)) ||
        fail "--rank_size=$rank_size ranks cannot be shared evenly by ${#host_list[@]} hosts"
    num_ranks_here=$((rank_size / ${#host_list[@]}))
    if [[ ! $host_index ]]; then find_host_index; fi
    ((10#$host_index < ${#host_list[@]})) ||
        fail "--host_index=$host_index is not below ${#host_list[@]}, the number of hosts"
    first_rank=$((10#$host_index * num_ranks_here))
}

find_host_index() {
    local here index address found=()
    here=" $(hostname -I 2>/dev/null || true) $(hostname) localhost "
    for index in "${!host_list[@]}"; do
        address=$(getent ahosts "${host_list[index]}" | awk 'NR == 1 { print $1 }' || true)
        address=${address:-${host_list[index]}}
        if [[ $here == *" ${host_list[index]} "* || $here == *" $address "* ||
            $address == 127.* ]]; then found+=("$index"); fi
    done
    ((${#found[@]} == 1)) ||
        fail "${#found[@]} of --hosts=$hosts are this machine; say with --host_index which one it is"
    host_index=${found[0]}
}

uses_npu() {
    [[ " ${main_flags[*]-} " != *' --accelerator=host '* ]] && [[ $("$python" -c '
import importlib.util
print(importlib.util.find_spec("npu_bridge") is not None)' 2>/dev/null) == True ]]
}

find_free_ports() {
    local offset
    for _ in {1..100}; do
        first_port=$((20000 + RANDOM % 10000))
        for ((offset = 0; offset < rank_size; offset++)); do
            if (: >"/dev/tcp/127.0.0.1/$((first_port + offset))") 2>/dev/null; then continue 2; fi
        done
        return
    done
    fail "found no $rank_size free ports in a row"
}

# TF_CONFIG of a rank, as runtime/cluster.py reads it.
tf_config() {  # tf_config RANK
    local rank workers=''
    for ((rank = 0; rank < rank_size; rank++)); do
        workers+="\"${host_list[rank / num_ranks_here]:-127.0.0.1}:$((first_port + rank))\","
    done
    printf '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}' \
        "${workers%,}" "$1"
}

# Sets `environment`, what tells a process of its place; one of a single device has no TF_CONFIG and
# no rank table.
describe_rank() {  # describe_rank RANK
    environment=(
        "JOB_ID=${JOB_ID:-10087}" "RANK_SIZE=$rank_size" "RANK_ID=$1"
        "ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}"
        "ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}")
    if ((rank_size == 1)); then
        environment=(-u TF_CONFIG -u RANK_TABLE_FILE -u CM_WORKER_SIZE "${environment[@]}")
        # npu_bridge prefers it to DEVICE_ID, which may be all that the caller has set.
        if [[ ! ${DEVICE_ID:-} ]]; then environment+=("ASCEND_DEVICE_ID=$device_id"); fi
    elif [[ $platform == npu ]]; then
        # Rank 0 evaluates while the others already wait for it in the next session.
        environment=(
            -u TF_CONFIG "${environment[@]}" "ASCEND_DEVICE_ID=$(($1 - first_rank))"
            "HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-3600}"
            "HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-3600}")
    else
        environment+=("TF_CONFIG=$(tf_config "$1")")
    fi
}

# Sets `cores`, the numbers of those that this script may use and is to share among its ranks.
find_cores() {
    local range core ranges
    cores=()
    [[ $bind_core ]] || return 0
    command -v taskset >/dev/null || fail '--bind_core needs taskset, of the package util-linux; install it or leave --bind_core out'
    IFS=, read -ra ranges < <(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "/proc/$$/status")
    for range in "${ranges[@]}"; do
        for ((core = ${range%-*}; core <= ${range#*-}; core++)); do cores+=("$core"); done
    done
    ((${#cores[@]} >= num_ranks_here)) ||
        fail "--bind_core cannot share ${#cores[@]} cores among $num_ranks_here ranks; leave it out"
}

# Sets `binding`, the command that keeps a rank to its share of the cores.
bind_rank() {  # bind_rank RANK
    local index=$(($1 - first_rank)) begin end share
    binding=()
    [[ $bind_core ]] || return 0
    begin=$((${#cores[@]} * index / num_ranks_here)) end=$((${#cores[@]} * (index + 1) / num_ranks_here))
    share=("${cores[@]:begin:end - begin}")
    binding=(taskset --cpu-list "$(IFS=,; echo "${share[*]}")")
}

# ------------------------------------------------------------------------------------ running

# Sets `flags`: what reaches main.py. A later one wins.
compose_flags() {
    local recipe=${model_name:-efficientnet-condconv-b0-8e}
    recipe=${recipe#efficientnet-}
    recipe=$root/recipes/${recipe//-/_}.flags
    flags=()
    if [[ -f $recipe ]]; then flags+=("--flagfile=$recipe"); fi
    flags+=("--data_dir=$data_path" "--model_dir=$model_dir")
    # A broken npu_bridge would leave several processes that know nothing of each other.
    if [[ $platform == npu ]]; then flags+=(--accelerator=npu); fi
    if [[ $kind == performance ]]; then
        flags+=("--flagfile=$root/recipes/performance.flags")
        add_flag save_checkpoints_steps "$train_steps"
    else
        flags+=(--mode=train_and_eval)
    fi
    if [[ $train_steps ]]; then
        # Ten measurements or more: the first one is left out.
        local every_steps=$((train_steps / 10))
        every_steps=$((every_steps > 100 ? 100 : every_steps > 0 ? every_steps : 1))
        add_flag log_step_count_steps "$every_steps"
    fi
    add_flag model_name "$model_name"
    add_flag batch_size "$batch_size"
    add_flag train_steps "$train_steps"
    add_flag train_epochs "$train_epochs"
    add_flag init_checkpoint "$ckpt_path"
    add_flag precision_mode "$precision_mode"
    add_flag over_dump "$over_dump"
    add_flag npu_dump_data "$data_dump_flag"
    add_flag dump_step "$data_dump_step"
    add_flag npu_profiling "$profiling"
    add_flag npu_auto_tune "$autotune"
    if [[ $over_dump ]]; then add_flag dump_dir "$output_path/overflow_dump"; fi
    if [[ $data_dump_flag ]]; then add_flag dump_dir "$output_path/data_dump"; fi
    if [[ $profiling ]]; then add_flag profiling_dir "$output_path/profiling"; fi
    if [[ $autotune ]]; then add_flag tune_dir "$output_path/tuning"; fi
    flags+=(${main_flags[@]+"${main_flags[@]}"})
}

add_flag() { if [[ $2 ]]; then flags+=("--$1=$2"); fi; }  # add_flag NAME VALUE

# Reads process groups, and ends them when nobody holds the other end of its input any more: that
# is when the script is over, however it was ended.
watch() {
    local group groups=()
    while read -r group; do groups+=("-$group"); done
    if ((${#groups[@]} == 0)); then return; fi
    kill -TERM -- "${groups[@]}" 2>/dev/null
    # They may be saving a checkpoint.
    for _ in {1..300}; do
        if ! kill -0 -- "${groups[@]}" 2>/dev/null; then return; fi
        sleep 0.2
    done
    kill -KILL -- "${groups[@]}" 2>/dev/null
}

start_rank() {  # start_rank RANK
    local log
    log=$(log_of "$1")
    mkdir -p -- "$(dirname -- "$log")"
    if [[ -f $log ]]; then mv -f -- "$log" "$log.previous"; fi
    describe_rank "$1"
    # A process group of its own: what it starts, compilers of operators say, ends with it.
    bind_rank "$1"
    setsid env "${environment[@]}" ${binding[@]+"${binding[@]}"} "$python" "$root/main.py" "${flags[@]}" \
        >"$log" 2>&1 </dev/null 8>&- &
    pids+=("$!")
    echo "$!" >&8
}

# Starts all ranks of this host and waits for them; shows the first one's log as it grows. A `wait`
# for all includes the one who watches, so the lifeline, 8, is closed before.
run_ranks() {
    local index pid code running
    pids=()
    exec 8> >(exec setsid bash -c "$(declare -f watch); watch")
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    trap 'exec 8>&-; wait' EXIT
    for ((index = 0; index < num_ranks_here; index++)); do start_rank $((first_rank + index)); done
    tail -n +1 -f --pid="${pids[0]}" --sleep-interval=0.2 -- "$(log_of "$first_rank")" 8>&- &

    running=("${!pids[@]}")
    while ((${#running[@]})); do
        sleep 0.2
        for index in "${running[@]}"; do
            pid=${pids[index]}
            if kill -0 "$pid" 2>/dev/null; then continue; fi
            code=0
            wait "$pid" || code=$?
            if ((code)); then end_all "$((first_rank + index))" "$code"; fi
            unset "running[index]"
        done
    done
    trap - INT TERM HUP EXIT
    exec 8>&-
    wait
}

# The others would wait for the one that is gone; there is nothing for them to save. But if it was
# told to end by a signal, it has told them, and rank 0 saves a checkpoint in which all take part.
end_all() {  # end_all RANK EXIT_CODE
    local log pid message
    if (($1 > 0 && ($2 == 130 || $2 == 143))); then await_ranks; fi
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    exec 8>&-
    wait
    log=$(log_of "$1")
    message=$(grep -a ': error: ' "$log" | tail -n 1 || true)
    if [[ ! $message ]]; then tail -n 20 -- "$log" >&2; fi
    fail "rank $1 ended with exit code $2; ${message:-above is the end} ($log)" "$2"
}

await_ranks() {
    local pid
    for _ in {1..300}; do
        for pid in "${pids[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then sleep 0.2; continue 2; fi
        done
        return
    done
}

log_of() { printf '%s/%d/train_%d.log' "$output_path" "$(folder_of "$1")" "$(folder_of "$1")"; }

# A single device keeps the number it has on its host; several are numbered through all hosts.
folder_of() { if ((rank_size == 1)); then echo "$device_id"; else echo "$1"; fi; }

# main.py refuses a folder in which another one trains, but this would be removed before.
check_not_in_use() {
    local lock=$model_dir/train.lock
    if [[ -s $lock ]] && command -v flock >/dev/null && ! flock --nonblock "$lock" true; then
        fail "$model_dir is in use by $(<"$lock"); wait until it ends, or choose another --output_path"
    fi
}

train_case() {
    local start_secs=$SECONDS case_dir
    read_options "$@"
    find_python
    place_ranks
    find_cores
    device_id=${ASCEND_DEVICE_ID:-${DEVICE_ID:-0}} platform=host first_port=$SEVERAL_HOSTS_FIRST_PORT
    [[ $device_id =~ ^[0-9]{1,4}$ ]] || fail "ASCEND_DEVICE_ID or DEVICE_ID, $device_id, is not a whole number"
    if ((rank_size > 1)); then
        if uses_npu; then platform=npu; elif [[ ! $hosts ]]; then find_free_ports; fi
        [[ $platform != npu || ! $hosts || ${RANK_TABLE_FILE:-} ]] ||
            fail 'RANK_TABLE_FILE is not set; name the JSON file that lists the devices of all hosts'
    fi
    mkdir -p -- "$output_path" || fail "--output_path=$output_path cannot be made; choose another one"
    output_path=$(cd -- "$output_path" && pwd -P)
    case_dir=$output_path/$(folder_of 0)
    model_dir=$case_dir/ckpt
    if [[ $kind == performance ]]; then
        # Each measurement begins anew; a full training goes on where it was.
        model_dir=$case_dir/ckpt_perf
        check_not_in_use
        if ((first_rank == 0)); then rm -rf -- "$model_dir" "$model_dir"_rank_*; fi
    fi
    compose_flags
    run_ranks
    if ((first_rank == 0)); then
        (cd -- "$root" && exec "$python" -m report.modelzoo --model_dir="$model_dir" \
            --log_file="$(log_of 0)" --kind="$kind" ${bind_core:+--bound} \
            --e2e_secs=$((SECONDS - start_secs)))
    fi
}
