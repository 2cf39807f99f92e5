#!/usr/bin/env bash
# Trains and evaluates on one device with the whole recipe.
#
#   bash test/train_full_1p.sh --data_path=/data/imagenet
#
# A repeated run resumes from the last checkpoint. The final top-1 accuracy, images/s and the loss
# are printed, and written to output/0/<CaseName>.log like those of the ModelZoo's cases.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh" \
    --kind=full --rank_size=1 \
    --summary='Trains and evaluates on one device with the recipe of the network in recipes/.' \
    -- "$@"
