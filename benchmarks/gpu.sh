#!/usr/bin/env bash
# Everything that only a GPU can say, in under nine minutes: are the kernels right, how fast are they, how fast is a step.
#
#   benchmarks/gpu.sh [correctness|kernels|step|tune|all] [--smoke] [--preset NAME]
#
# Works from a checkout with the system's python3 (PYTHON) and what it has installed; nothing is installed. Results go
# to OUT (default reports/<device>): correctness.md, kernels.json and .md, step.json and .md. `all` is the first three,
# each with a time limit of its own; where the tests fail nothing is measured. `tune` writes the device's own table of
# configurations. --smoke runs every path that a processor can, with figures that mean nothing.
set -eu

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Seconds; the first four sum to less than 540. Another limit: STEP_S=500 benchmarks/gpu.sh step
CORRECTNESS_S=${CORRECTNESS_S:-180}
WARM_S=${WARM_S:-70}
KERNELS_S=${KERNELS_S:-170}
STEP_S=${STEP_S:-105}
TUNE_S=${TUNE_S:-480}
TUNE_GROUP=${TUNE_GROUP:-kernels}
GROUPS_OF_KERNELS="attention moe fp8 loss norm"
SLACK_S=20 # between the moment when nothing new is begun and the end

phase=all
smoke=
preset=
while [ $# -gt 0 ]; do
    case $1 in
    correctness | kernels | step | tune | all) phase=$1 ;;
    --smoke) smoke=--smoke ;;
    --preset)
        preset=${2:?--preset wants a name}
        shift
        ;;
    *)
        echo "error: $1 is unknown; give correctness, kernels, step, tune or all, and --smoke or --preset NAME" >&2
        exit 2
        ;;
    esac
    shift
done

if [ -n "$smoke" ]; then
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "error: $PYTHON sees no CUDA device (or has no torch); run this on a machine with a GPU, or with --smoke" >&2
    exit 2
fi
slug=$("$PYTHON" -c 'from ablate.spec.machine import this_machine; print(this_machine().slug)')
OUT=${OUT:-reports/$slug}
mkdir -p "$OUT"

# One process for each file of tests: compiling takes longest, and each does it on a core of its own. The project's own
# configuration is left out, as it wants plugins that may not be installed; warnings are errors all the same.
correctness() {
    local logs file name failed=0 jobs=12
    if ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
        echo "error: $PYTHON has no pytest, which the tests of the kernels need" >&2
        return 1
    fi
    local files=(tests/kernels/test_*.py)
    if [ -n "$smoke" ]; then
        files=(tests/kernels/test_rms_norm.py tests/kernels/test_configurations.py)
        jobs=1
    fi
    logs=$(mktemp -d)
    printf '%s\n' "${files[@]}" | xargs -P "$jobs" -I{} sh -c '
        name=$(basename "$1" .py)
        timeout "$2" "$3" -m pytest -c /dev/null --rootdir . -m "not slow" -p no:cacheprovider -q -x -W error --tb short \
            -W "ignore::pytest.PytestUnknownMarkWarning" "$1" >"$4/$name.log" 2>&1
        echo $? >"$4/$name.status"' sh {} "$CORRECTNESS_S" "$PYTHON" "$logs"
    {
        printf '# Kernels against float64 on %s\n\n| file | result |\n|---|---|\n' "$slug"
        for file in "${files[@]}"; do
            name=$(basename "$file" .py)
            printf '| %s | %s |\n' "$file" "$(tail -n 1 "$logs/$name.log")"
        done
    } >"$OUT/correctness.md"
    for file in "${files[@]}"; do
        name=$(basename "$file" .py)
        if [ "$(cat "$logs/$name.status")" != 0 ]; then
            failed=1
            echo "error: $file failed (124 is the time limit: $(cat "$logs/$name.status"))" >&2
            tail -n 40 "$logs/$name.log" | tee -a "$OUT/correctness.md" >&2
        fi
    done
    cat "$OUT/correctness.md"
    rm -r "$logs"
    return "$failed"
}

# Compiles what will be timed: all groups side by side, one core each; their figures are thrown away.
warm() {
    local group
    if [ -n "$smoke" ]; then
        return
    fi
    for group in $GROUPS_OF_KERNELS; do
        timeout --signal INT --kill-after 10 "$WARM_S" \
            "$PYTHON" cli.py bench "$group" --smoke >/dev/null 2>&1 &
    done
    wait || true
}

# bench GROUP SECONDS [OPTION...]
bench() {
    local group=$1 limit=$2
    shift 2
    timeout --signal INT --kill-after 10 "$limit" \
        "$PYTHON" cli.py bench "$group" --out "$OUT" --limit $((limit - SLACK_S)) $smoke "$@" ||
        echo "error: the benchmark of $group ended with $? (124: its time was over); $OUT has what was measured" >&2
}

case $phase in
correctness) correctness ;;
kernels)
    warm
    bench kernels "$KERNELS_S"
    ;;
step) bench step "$STEP_S" ${preset:+--preset "$preset"} ;;
tune)
    warm
    bench "$TUNE_GROUP" "$TUNE_S" --tune
    cp "ablate/kernels/measured/$slug.json" "$OUT/measured.json"
    ;;
all)
    correctness || exit 1
    warm
    bench kernels "$KERNELS_S"
    bench step "$STEP_S" ${preset:+--preset "$preset"}
    ;;
esac
