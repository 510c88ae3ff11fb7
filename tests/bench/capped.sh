#!/usr/bin/env bash
# make bench-capped: a model four times the memory that its process may use, page cache included.
#
#     tests/bench/capped.sh BUILD [MB_PER_S [DEVICE]]
#
# Generates a checkpoint of a little more than 6 GiB, puts bench_stream into a memory cgroup of a quarter
# of it, and prints the two terms of a token beside the time it took, with the peak that the kernel
# counted. MB_PER_S: reads are held back to that speed, 600 unless given, so that the drive is the slower
# part. Needs root (or a delegated cgroup), 7 GiB of $TMPDIR.
set -eu
build=$1
speed=${2:-600}
device=${3:-ref}
. "$(dirname "$0")/cgroup.sh"
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-capped-XXXXXX")
trap 'rm -rf "$dir"; cgroup_leave' EXIT

cgroup_make $((1 << 40)) || exit 77 # before the work of the model
cgroup_leave
"$build/catflap" mkmodel "$dir/large" --shape longcat-flash --layers 5 --hidden 1024 --heads 8 \
    --experts 256 --zero-experts 128 --top-k 12 --ffn 2048 --expert-ffn 896 --vocab 8192 \
    --max-ctx 4096 --seed 1
bytes=$(du -sb "$dir/large" | cut -f1)
cap=$((bytes / 4))
sync "$dir"/large/*
cgroup_make "$cap"
echo "model          $bytes bytes, cap $cap"
status=0
cgroup_run "$build/bench/bench_stream" "$dir/large" "$device" 24 12 "$speed" || status=1
peak=$(cgroup_peak)
[ -z "$peak" ] || echo "peak           $peak bytes of the cap's $cap, as the kernel counts (page cache included)"
exit $status
