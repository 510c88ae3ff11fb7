#!/usr/bin/env bash
# make bench-dense: dense weights that do not fit in --vram, held in RAM, in tokens per second.
#
#     tests/bench/dense.sh BUILD [DEVICE [MB_PER_S [TOKENS [ROUNDS]]]]
#
# Generates a checkpoint of 0.3 GB that is almost all dense, runs bench_dense (which says what it does)
# in the discrete memory mode, and removes it. Reads are held back to MB_PER_S, 400 unless given.
set -eu
build=$1
device=${2:-vulkan}
speed=${3:-400}
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-dense-XXXXXX")
trap 'rm -rf "$dir"' EXIT
"$build/catflap" mkmodel "$dir/dense" --shape longcat-flash --layers 3 --hidden 1024 --heads 8 \
    --experts 16 --zero-experts 8 --top-k 2 --ffn 6144 --expert-ffn 64 --vocab 4096 --max-ctx 512 --seed 3
"$build/bench/bench_dense" "$dir/dense" "$device" "$speed" "${4:-6}" "${5:-3}"
