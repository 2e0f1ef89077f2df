#!/usr/bin/env bash
# Two processes give what one gives with accumulation 2, to the bit:
#
#     bash examples/two_processes.sh
set -euo pipefail
here=$(dirname "$0")
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
# The last hides a remark of torch on a setting that is right here.
export OMP_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR
export PYTHONPATH="$here/../src:${PYTHONPATH:-}"

one=$(python "$here/two_processes.py" "$runs/one")
echo "one process:    $one"

# torchrun starts two processes on this machine, which find each other by themselves.
two=$(python -m torch.distributed.run --standalone --nproc-per-node 2 \
    "$here/two_processes.py" "$runs/two")
echo "two processes:  $two"

[ "$one" = "$two" ] && echo "the same" || { echo "not the same"; exit 1; }
