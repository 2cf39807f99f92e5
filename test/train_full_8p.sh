#!/usr/bin/env bash
# Trains and evaluates on several devices with the whole recipe.
#
#   bash test/train_full_8p.sh --data_path=/data/imagenet
#   bash test/train_full_8p.sh --data_path=/data/imagenet --rank_size=16 --hosts=10.0.0.1,10.0.0.2
#
# Starts one process per device, with its log in output/<rank>/. Rank 0 evaluates and reports. If
# one process fails, the others are stopped.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=full --rank_size=8 \
    --summary='Trains and evaluates on several devices, one process each, with the recipe of the network in recipes/.' \
    -- "$@"
