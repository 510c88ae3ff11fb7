#!/usr/bin/env bash
# catflap beside llama.cpp: decode of one GGUF file in a memory cgroup of a part of its bytes.
#
#     tests/bench/beside.sh BUILD LLAMA_BENCH FILE.gguf [PART [DEVICE]]
#
# LLAMA_BENCH: that program of llama.cpp, built without GGML_CPU_REPACK, which would hold the weights in
# memory a second time. PART: the file's bytes are divided by it, 4 unless given. catflap gets three
# quarters of that as --vram. Needs root (or a delegated cgroup).
set -eu
build=$1
llama=$2
file=$3
part=${4:-4}
device=${5:-opencl}
. "$(dirname "$0")/cgroup.sh"
trap cgroup_leave EXIT
cap=$(($(stat -Lc %s "$file") / part))
cgroup_make "$cap" || exit 77
echo "$file in $cap bytes, page cache included"
for round in 1 2; do
    dd if="$file" iflag=nocache count=0 status=none # what is cached already counts towards no limit
    cgroup_run "$llama" -m "$file" -p 0 -n 24 -r 1 -t "$(nproc)" -lm mmap --no-warmup 2>/dev/null |
        grep tg24 || echo "llama.cpp did not get through"
    cgroup_run "$build/catflap" bench "$file" --device "$device" --vram $((cap / 4 * 3)) --contexts 8 \
        -n 24 --samples 1 --ctx 256 --csv | awk -F, '/decode/ && !n++ { print "catflap: " $5 " tokens/s, hit rate " $6 }'
done
