#!/usr/bin/env bash
# Trains, evaluates and exports a model on sample data, and classifies one image with it.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: bash quickstart.sh [OUTPUT_DIR]

Sets up .venv, creates the sample data, trains, evaluates and exports a CondConv-EfficientNet, and
classifies one image. OUTPUT_DIR defaults to output/quickstart next to this file. A repeated run
resumes where the last one stopped.
USAGE
}

case ${1:-} in
    -h | --help) usage; exit 0 ;;
    -*) printf 'quickstart: error: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
esac
if (($# > 1)); then printf 'quickstart: error: %d arguments given; give one OUTPUT_DIR, see --help\n' $# >&2; exit 2; fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
output=${1:-$root/output/quickstart}
mkdir -p "$output"
output=$(cd "$output" && pwd -P)

bash "$root/setup.sh"
cd "$root"
python=$root/.venv/bin/python

accelerator=auto
"$python" -c 'import importlib.util, sys
sys.exit(importlib.util.find_spec("npu_bridge") is None)' || accelerator=stock

"$python" -m dataset.sample --output_dir="$output/data"
"$python" main.py --flagfile=recipes/quickstart.flags --data_dir="$output/data" \
    --model_dir="$output/model" --accelerator="$accelerator"
"$python" export_model.py --ckpt_dir="$output/model" --output_dir="$output/saved_model"
"$python" predict.py --saved_model="$output/saved_model" --top_k=3 \
    "$output/data/examples/seven_0.jpg"

cat <<DONE

Data          $output/data
Run           $output/model (checkpoints and results.jsonl; best checkpoint in archive/)
Export        $output/saved_model

Next, train on your own TFRecords (train-?????-of-?????, validation-?????-of-????? in DATA):
  .venv/bin/python main.py --mode=train_and_eval --data_dir=DATA --model_dir=RUN \\
      --model_name=efficientnet-condconv-b0-8e --batch_size=32
DONE
