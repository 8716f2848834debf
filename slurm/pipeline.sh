#!/bin/bash
# Submits a study to SLURM: annotate, cache_logits, fit, evaluate and its report, each after what it needs.
#     slurm/pipeline.sh CONFIG [overrides of the study]
# Run again, it submits only what is neither done nor in the queue.
set -e
cd "$(dirname "$0")/.."
source slurm/common.sh
load_site
[[ -f ${1:-} ]] || fail "usage: slurm/pipeline.sh CONFIG [overrides of the study]; there is no file '${1:-}'"
PYTHONPATH=$PWD exec python -m scripts.study submit --config "$@"
