#!/usr/bin/env bash
# All results of this folder, at full size on a GPU:   experiments/cifar10/run.sh path/to/cifar10
# or reduced to a size for a CPU:                      experiments/cifar10/run.sh path/to/cifar10 reduced
# path/to/cifar10 contains train/<class>/*.jpg and test/<class>/*.jpg. Stop it at any time: the same command resumes from the
# last checkpoint of every run. STEPS=1200 trains to that step; finished shorter runs are continued, not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data=$(realpath "$1")
size=${2:-full}
python=${PYTHON:-.venv/bin/python}
runs=${RUNS:-runs}/cifar10_$size
settings=(--gin_bindings="IMAGES = '$data/train'" --gin_bindings="TEST = '$data/test'")
parallel=1
if [ "$size" = reduced ]; then # one run per core; on a GPU one after the other
    parallel=$(nproc)
    export OMP_NUM_THREADS=1
    settings+=(--gin_file=cifar10_cpu.gin --gin_bindings="sweep.parallel = $parallel" --gin_bindings='sweep.threads = 1')
fi

if [ -n "${STEPS:-}" ]; then
    settings+=(--gin_bindings="train.num_steps = $STEPS")
    # a sweep refuses models and results of another length
    find "$runs/models" -name config.gin -printf '%h\n' | sort | xargs -P "$parallel" -I {} "$python" -m redi.train \
        --gin_file={}/config.gin --run_dir={} --gin_bindings="train.num_steps = $STEPS"
    rm -rf "$runs/points"
fi
"$python" -m redi.sweep --gin_file=sweeps/cifar10_convergence.gin "${settings[@]}" --run_dir="$runs"
for method in repa redi lead; do
    "$python" -m redi.convergence --run_dir="$runs/factor_$method" \
        --baseline="$runs/models/plain*" --method="$runs/models/$method*"
done
"$python" experiments/cifar10/table.py "$runs" "$runs/table.json" | tee "$runs/table.md"
[ "$size" = reduced ] ||
    "$python" -m redi.sweep --gin_file=sweeps/cifar10_ablations.gin "${settings[@]}" --run_dir="${runs}_ablations"
