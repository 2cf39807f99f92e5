#!/usr/bin/env bash
# Measures the training speed of one device.
#
#   bash test/train_performance_1p.sh --data_path=/data/imagenet
#
# Each run starts from scratch and trains a fixed number of steps. The steps that compile and warm
# up do not count.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=performance --rank_size=1 --default_steps=1000 \
    --summary='Trains a fixed number of steps on one device and measures images/s.' \
    -- "$@"
