#!/usr/bin/env bash
# make bench-stream: proves that a model larger than its budgets is streamed, and measures it.
#
#     tests/bench/stream.sh BUILD [DEVICE...]        devices: ref vulkan unless given
#
# Generates a checkpoint of a little more than 6 GiB and a small one with a long window, runs
# bench_stream and bench_stall (tests/bench/*.c say what they check) and removes both. Takes a few
# minutes and 7 GiB of $TMPDIR (default /tmp), which should be on the drive in question.
set -eu
build=$1
shift
devices=${*:-ref vulkan}
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-bench-XXXXXX")
trap 'rm -rf "$dir"' EXIT
free_kib=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt $((8 << 20)) ]; then
    echo "bench-stream: $dir has $((free_kib >> 20)) GiB free, 8 are needed" >&2
    exit 1
fi
"$build/catflap" mkmodel "$dir/large" --shape longcat-flash --layers 5 --hidden 1024 --heads 8 \
    --experts 256 --zero-experts 128 --top-k 12 --ffn 2048 --expert-ffn 896 --vocab 8192 \
    --max-ctx 4096 --seed 1
"$build/catflap" mkmodel "$dir/window" --shape longcat-flash --layers 4 --hidden 1024 --heads 8 \
    --experts 64 --zero-experts 0 --top-k 4 --ffn 8192 --expert-ffn 64 --vocab 4096 \
    --max-ctx 4096 --seed 2
bytes=$(du -sb "$dir/large" | cut -f1)
if [ "$bytes" -lt $((6 << 30)) ]; then
    echo "bench-stream: the checkpoint has $bytes bytes, at least 6 GiB are wanted" >&2
    exit 1
fi
status=0
for device in $devices; do
    if ! "$build/catflap" info --devices | grep -q "$device"; then
        echo "== $device: none here, skipped"
        continue
    fi
    echo "== streaming, $device"
    "$build/bench/bench_stream" "$dir/large" "$device" || status=1
    echo "== stall, $device"
    tokens=24
    [ "$device" = ref ] || tokens=6 # a device in software is slow
    "$build/bench/bench_stall" "$dir/window" "$device" "$tokens" || status=1
done
exit $status
