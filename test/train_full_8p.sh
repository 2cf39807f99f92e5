#!/usr/bin/env bash
# Trains and evaluates on several devices together, to the end of the recipe.
#
#   bash test/train_full_8p.sh --data_path=/data/imagenet
#   bash test/train_full_8p.sh --data_path=/data/imagenet --rank_size=16 --hosts=10.0.0.1,10.0.0.2
#
# One process a device; each has its log in output/<rank>/. Rank 0 evaluates and reports. If one of
# them fails the others are ended.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=full --rank_size=8 \
    --summary='Trains and evaluates on several devices, a process each, by the recipe of the network in recipes/.' \
    -- "$@"
