#!/usr/bin/env bash
# Measures how fast several devices train together.
#
#   bash test/train_performance_8p.sh --data_path=/data/imagenet
#
# A fixed number of steps, from the beginning each time; those that compile and warm up do not
# count. Images per second are those of all devices.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=performance --rank_size=8 --default_steps=1000 \
    --summary='Trains on several devices, a process each, for some steps, and measures images per second.' \
    -- "$@"
