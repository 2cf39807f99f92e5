#!/usr/bin/env bash
# Measures how fast one device trains.
#
#   bash test/train_performance_1p.sh --data_path=/data/imagenet
#
# A fixed number of steps, from the beginning each time; those that compile and warm up do not
# count.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=performance --rank_size=1 --default_steps=1000 \
    --summary='Trains on one device for some steps, and measures images per second.' \
    -- "$@"
