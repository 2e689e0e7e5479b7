#!/usr/bin/env bash
# All results of this folder, at full size on a GPU:   experiments/cifar10/run.sh path/to/cifar10
# or reduced to a size for a CPU:                      experiments/cifar10/run.sh path/to/cifar10 cifar10_cpu.gin
# path/to/cifar10 contains train/<class>/*.jpg and test/<class>/*.jpg. Rerun the same command to finish what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data=$(realpath "$1")
python=${PYTHON:-.venv/bin/python}
reduced=${2:+--gin_file=$2}

for name in convergence lambda rank components guidance unconditional; do
    # shellcheck disable=SC2086 - empty without a second argument
    "$python" -m redi.sweep --gin_file="sweeps/cifar10_$name.gin" $reduced --run_dir="runs/cifar10_$name" \
        --gin_bindings="IMAGES = '$data/train'" --gin_bindings="TEST = '$data/test'"
done
"$python" -m redi.convergence --run_dir=runs/cifar10_convergence/factor \
    --baseline='runs/cifar10_convergence/models/plain*' --method='runs/cifar10_convergence/models/redi*'
