#!/usr/bin/env bash
# make bench-long: prefill and decode at up to 32,768 positions, of a small narrow model.
#
#     tests/bench/long.sh BUILD [DEVICE...]        devices: ref opencl unless given
#
# What grows with the context are attention's time and the cache of keys and values, and nothing
# else: the memory plan is printed beside the speeds. Takes some minutes and 8 MiB of $TMPDIR.
set -eu
set -o pipefail
build=$1
shift
devices=${*:-ref opencl}
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-long-XXXXXX")
trap 'rm -rf "$dir"' EXIT
"$build/catflap" mkmodel "$dir/model" --shape longcat-flash-tiny --layers 1 --heads 2 --max-ctx 65536
for device in $devices; do
    for ctx in 2080 8224 32800; do
        echo "== $device, context $ctx"
        "$build/catflap" info "$dir/model" --device "$device" --ctx $ctx --vram 1G |
            sed -n '/KV cache/,/expert rows/p'
        "$build/catflap" bench "$dir/model" --device "$device" --ctx $ctx --vram 1G -q \
            --contexts $((ctx - 32)) -n 32 --samples 1 | sed -n '/prefill  *[0-9]/p;/decode  *[0-9]/p'
    done
done
