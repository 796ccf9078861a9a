#!/usr/bin/env bash
# Everything that only a GPU can say, in stages that each fit one call on a borrowed machine: under eight minutes, at
# most eight files. `benchmarks/gpu_stages.py` says what each does.
#
#   benchmarks/gpu.sh STAGE [--smoke] [--preset NAME]
#   benchmarks/gpu.sh wheels
#
# STAGE: correctness, attention-correctness, fp8-attention, moe-loss-norm, step, tune; or all, one after another. Works
# from a checkout with the system's python3 (PYTHON) and what it has installed. Results go to OUT (default
# reports/<device>), each case as it ends; nothing that fails keeps the rest from being measured, and the exit code is 1
# if anything did. --smoke runs every path that a processor can, with figures that mean nothing.
#
# To carry to a machine without a package index: this checkout and the folder WHEELS (default .whl; 2.7 MiB, five
# wheels: pydantic and what it needs, tomli-w), which git ignores. `wheels` fetches them where there is an index, for
# Python 3.12 on x86-64 or WHEELS_PYTHON; a stage that finds the folder installs from it, for itself alone. That machine
# needs torch 2.11 or later with its Triton, Lightning, pytest, typer, rich, numpy and scipy; transformers for one row of
# `step`. It needs no optuna, wandb, submitit, and no network.
set -eu

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-.whl}
WHEELS_PYTHON=${WHEELS_PYTHON:-3.12}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Deterministic algorithms, under which unwritten memory shows, refuse cuBLAS's products without it.
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}

if [ "${1:-}" = wheels ]; then
    wanted=$("$PYTHON" -c 'from importlib.metadata import version as v
print(*(f"{n}=={v(n)}" for n in ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "tomli-w")))')
    platforms=
    for n in 28 27 17; do platforms="$platforms --platform manylinux_2_${n}_x86_64"; done
    # shellcheck disable=SC2086
    exec "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version "$WHEELS_PYTHON" \
        --implementation cp $platforms --platform manylinux2014_x86_64 -d "$WHEELS" $wanted
fi

if ls "$WHEELS"/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$site"
fi
"$PYTHON" benchmarks/gpu_stages.py "$@"
