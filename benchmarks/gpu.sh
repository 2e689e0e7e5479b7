#!/usr/bin/env bash
# Benchmarks for one GPU in at most eight minutes, the most important first:
#   [WHEELS=folder] [PYTHON=python3] bash benchmarks/gpu.sh FOLDER     or OUT=FOLDER
#   bash benchmarks/gpu.sh --quick FOLDER                               every part, tiny, on the CPU: half a minute
#
# Each part writes FOLDER/<part>.json as it runs (whole files only), its log, and <part>.status.json at its end. A part that
# fails or takes too long does not stop the others, so everything finished when the machine is lost is in FOLDER.
# Missing packages can be installed from wheels in WHEELS. Without xformers, its row states the reason.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
device=cuda quick=
if [ "${1:-}" = --quick ]; then device=cpu quick=--quick; shift; fi
out=${1:-${OUT:?a folder for the results: benchmarks/gpu.sh [--quick] FOLDER}}
python=${PYTHON:-python3}
budget=${SECONDS_IN_ALL:-475}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" || exit 1

part() { # name, seconds it may take, script, its arguments
    local name=$1 limit=$2 script=$3 began=$SECONDS status
    shift 3
    [ "$limit" -le $((budget - SECONDS)) ] || limit=$((budget - SECONDS))
    if [ "$limit" -gt 0 ]; then
        timeout -k 3 "$limit" "$python" "$root/benchmarks/$script.py" --device $device $quick "$@" \
            --out "$out/$name.json" >"$out/$name.log" 2>&1
        status=$?
    else
        status=124 # no time left
    fi
    printf '{"part": "%s", "exit_status": %d, "seconds": %d, "limit_seconds": %d}\n' \
        "$name" "$status" $((SECONDS - began)) "$limit" >"$out/.status"
    mv "$out/.status" "$out/$name.status.json"
    cat "$out/$name.status.json"
}

if [ -n "${WHEELS:-}" ]; then
    for wheel in "$WHEELS"/*.whl; do
        timeout 60 "$python" -m pip install --quiet --no-index --no-deps --find-links "$WHEELS" "$wheel"
    done >"$out/wheels.log" 2>&1
fi
# Limits in seconds; what it takes on an H200, compilation included, is estimated.
part attention 70 attention                                    # 40
part train_xl2 190 train_step --only xl2_default xl2_default_64 # 160
part sampling_xl2 110 sampling --only xl2_default              # 90
part train_b2 60 train_step --only b2_default                  # 45
part sampling_b2 45 sampling --only b2_default                 # 35
part quality 75 quality --brief                                # 60
