#!/usr/bin/env bash
# Plain against ReDi on CIFAR-10 at full size (gin/cifar10.gin, shortened) on one GPU, in at most eight minutes, offline:
#   [WHEELS=folder] [PYTHON=python3] bash experiments/cifar10/gpu.sh DATA [OUT]
#   bash experiments/cifar10/gpu.sh --quick DATA [OUT]                   the same parts, tiny, on the CPU
#
# DATA is cifar10.tar.xz or a folder with train/<class>/*.jpg and test/<class>/*.jpg. OUT (default: cifar10_gpu) receives, as
# the runs proceed, plain.jsonl and redi.jsonl (a line per log entry, distances included), table.md and table.json, and at the
# end the sweep's results.md, samples of both models and log.txt. Both models train at once on the GPU and keep the same pace:
# what is there when the time is up can be compared. Missing packages can be installed from wheels in WHEELS.
set -u
quick=
if [ "${1:-}" = --quick ]; then quick=1; shift; fi
data=$(realpath "${1:?cifar10.tar.xz or a folder: experiments/cifar10/gpu.sh [--quick] DATA [OUT]}") || exit 1
out=${2:-${OUT:-cifar10_gpu}}
mkdir -p "$out" && out=$(realpath "$out") || exit 1
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
budget=${SECONDS_IN_ALL:-470}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} REDI_CACHE=${REDI_CACHE:-$work/cache}
cd "$root" || exit 1

if [ -n "${WHEELS:-}" ]; then
    timeout 60 "$python" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl
fi
if [ -f "$data" ]; then
    tar -xf "$data" -C "$work" || exit 1
    data=$work/cifar10
fi
# Estimated for an H200: 70 s to prepare, 60 s to start and compile, 200 s for 4,000 steps of both, 60 s to sample and measure.
length=(
    'train.num_steps = 4000' 'train.warmup_steps = 200' 'train.log_every = 100' 'train.monitor_every = 400'
    'train.checkpoint_every = 4000' 'train.preview_every = 4000' 'Monitor.num_images = 1000' 'sample.num_images = 2000' 'generate.compile = False'
)
size=()
if [ -n "$quick" ]; then
    size=(--gin_file=cifar10_cpu.gin)
    length=(
        'train.num_steps = 4' 'train.batch_size = 8' 'train.warmup_steps = 1' 'train.log_every = 1'
        'train.monitor_every = 2' 'Monitor.num_images = 10' 'sample.num_images = 20'
        'EulerMaruyama.num_evaluations = 3' 'monitor/EulerMaruyama.num_evaluations = 3'
        'evaluator/DomainEncoder.num_steps = 2'
    )
fi
length+=("IMAGES = '$data/train'" "TEST = '$data/test'")
for binding in "${length[@]}"; do size+=(--gin_bindings="$binding"); done

collect() {
    for name in plain redi; do
        cp "$work/runs/models/$name"*/log.jsonl "$out/$name.jsonl"
        cp "$work/runs/points/$name"*/samples.png "$out/$name.png"
    done
    cp "$work/runs/results.md" "$out/"
    timeout 15 "$python" experiments/cifar10/table.py "$work/runs" "$out/table.json" >"$work/table.md" && cp "$work/table.md" "$out/"
} 2>/dev/null

(
    "$python" -m redi.prepare --gin_file=cifar10.gin "${size[@]}" --run_dir="$work/redi" &
    "$python" -m redi.prepare --gin_file=cifar10.gin "${size[@]}" --run_dir="$work/plain" \
        --gin_bindings='JointCodec.representations = []' &
    wait
) >"$out/log.txt" 2>&1
echo "prepared after $SECONDS s" | tee -a "$out/log.txt"

timeout -k 10 $((budget - SECONDS - 30)) "$python" -m redi.sweep --gin_file=sweeps/cifar10_convergence.gin "${size[@]}" \
    --run_dir="$work/runs" --gin_bindings="sweep.names = ['plain', 'redi']" \
    --gin_bindings="sweep.points = [{'JointCodec.representations': []}, {}]" \
    --gin_bindings="sweep.grid = {'train.seed': [0]}" --gin_bindings='sweep.parallel = 2' >>"$out/log.txt" 2>&1 &
sweep=$!
running=yes
while [ -n "$running" ]; do
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 $sweep 2>/dev/null && sleep 1; done
    kill -0 $sweep 2>/dev/null || running=
    collect # the last time after the sweep has ended
done
wait $sweep
status=$?
tail -n 20 "$work"/runs/points/*/output.txt >>"$out/log.txt"
echo "exit status $status after $SECONDS of at most $budget s" | tee -a "$out/log.txt"
cat "$out/table.md"
exit $status
