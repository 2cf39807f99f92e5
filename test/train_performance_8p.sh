#!/usr/bin/env bash
# Measures the training speed of several devices together.
#
#   bash test/train_performance_8p.sh --data_path=/data/imagenet
#
# Each run starts from scratch and trains a fixed number of steps. The steps that compile and warm
# up do not count. Images/s is the sum over all devices.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=performance --rank_size=8 --default_steps=1000 \
    --summary='Trains a fixed number of steps on several devices, one process each, and measures images/s.' \
    -- "$@"
