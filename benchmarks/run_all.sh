#!/bin/sh
# Every benchmark, one after the other, then the tables of README.md.
#   benchmarks/run_all.sh [cpu|cuda] [name ...]
# What fails is named at the end, and the exit status is then 1. PYTHON chooses the interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
device=${1:-cpu}
case $device in
    cpu | cuda) ;;
    *) echo "usage: benchmarks/run_all.sh [cpu|cuda] [name ...]" >&2; exit 2 ;;
esac
[ $# -eq 0 ] || shift
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python
names=${*:-startup memory attention data_loading pca train_step sampling quality long_run}
failed=""
started=$(date +%s)
for name in $names; do
    began=$(date +%s)
    echo "== $name ($device)"
    "$python" "benchmarks/$name.py" --device "$device" || failed="$failed $name"
    echo "== $name: $(($(date +%s) - began)) s"
done
"$python" benchmarks/readme.py || failed="$failed readme"
echo "== all: $(($(date +%s) - started)) s"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
