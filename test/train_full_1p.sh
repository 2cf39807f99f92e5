#!/usr/bin/env bash
# Trains and evaluates on one device, to the end of the recipe.
#
#   bash test/train_full_1p.sh --data_path=/data/imagenet
#
# Run again, it goes on from the last checkpoint. The top-1 at the end, images per second and the
# loss are printed, and written to output/0/<CaseName>.log as the ModelZoo's cases do.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=full --rank_size=1 \
    --summary='Trains and evaluates on one device, by the recipe of the network in recipes/.' \
    -- "$@"
