#!/bin/bash
# Submits a sweep's arms to SLURM, and its table.
#     slurm/sweep.sh GRID.yaml [--dry-run]
# Run again, it submits only what is neither done nor in the queue: a failed arm alone, for example.
set -e
cd "$(dirname "$0")/.."
source slurm/common.sh
load_site
[[ -f ${1:-} ]] || fail "usage: slurm/sweep.sh GRID.yaml [--dry-run]; there is no file '${1:-}'"
PYTHONPATH=$PWD exec python -m scripts.sweep "$@"
