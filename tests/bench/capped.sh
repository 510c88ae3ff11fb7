#!/usr/bin/env bash
# make bench-capped: a model four times the memory that its process may use, page cache included.
#
#     tests/bench/capped.sh BUILD [MB_PER_S [DEVICE]]
#
# Generates a checkpoint of a little more than 6 GiB, puts bench_stream into a memory cgroup (v1 or v2,
# whichever the machine has) of a quarter of it, and prints the two terms of a token beside the time it
# took, with the peak that the kernel counted. MB_PER_S: reads are held back to that speed, 600 unless
# given, so that the drive is the slower part. Needs root (or a delegated cgroup), 7 GiB of $TMPDIR.
set -eu
build=$1
speed=${2:-600}
device=${3:-ref}
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-capped-XXXXXX")
group=
leave() {
    rm -rf "$dir"
    [ -z "$group" ] || rmdir "$group"
}
trap leave EXIT

v1=/sys/fs/cgroup/memory
v2=/sys/fs/cgroup
if [ -d "$v1" ] && mkdir "$v1/catflap-$$" 2>/dev/null; then
    group=$v1/catflap-$$ limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes
elif mkdir "$v2/catflap-$$" 2>/dev/null && [ -e "$v2/catflap-$$/memory.max" ]; then
    group=$v2/catflap-$$ limit=memory.max peak=memory.peak
    [ ! -e "$group/memory.swap.max" ] || echo 0 >"$group/memory.swap.max"
else
    rmdir "$v2/catflap-$$" 2>/dev/null || true
    echo "bench-capped: no memory cgroup can be made here (root, or a delegated one, is needed)" >&2
    exit 77
fi

"$build/catflap" mkmodel "$dir/large" --shape longcat-flash --layers 5 --hidden 1024 --heads 8 \
    --experts 256 --zero-experts 128 --top-k 12 --ffn 2048 --expert-ffn 896 --vocab 8192 \
    --max-ctx 4096 --seed 1
bytes=$(du -sb "$dir/large" | cut -f1)
cap=$((bytes / 4))
sync "$dir"/large/*
echo "$cap" >"$group/$limit"
echo "model          $bytes bytes, cap $cap"
status=0
# The shell that joins the group becomes the bench.
bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' - "$group" \
    "$build/bench/bench_stream" "$dir/large" "$device" 24 12 "$speed" || status=1
if [ -e "$group/$peak" ]; then
    echo "peak           $(cat "$group/$peak") bytes of the cap's $cap, as the kernel counts (page cache included)"
fi
exit $status
