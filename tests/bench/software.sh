#!/usr/bin/env bash
# make bench-software: OpenCL on PoCL beside Vulkan on lavapipe, the two ways to compute on a
# processor through a driver, in decode tokens per second.
#
#     tests/bench/software.sh BUILD [ROUNDS]
#
# The bundled model and a generated one of a little more than 6 GiB, in turn, round by round, past the
# page cache. Prints each round and the ratio of the medians; the aim is 3. Takes some minutes and
# 7 GiB of $TMPDIR (default /tmp).
set -eu
build=$1
rounds=${2:-3}
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-bench-XXXXXX")
trap 'rm -rf "$dir"' EXIT
free_kib=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt $((8 << 20)) ]; then
    echo "bench-software: $dir has $((free_kib >> 20)) GiB free, 8 are needed" >&2
    exit 1
fi
"$build/catflap" mkmodel "$dir/large" --shape longcat-flash --layers 5 --hidden 1024 --heads 8 \
    --experts 256 --zero-experts 128 --top-k 12 --ffn 2048 --expert-ffn 896 --vocab 8192 \
    --max-ctx 4096 --seed 1

# decode MODEL VRAM TOKENS DEVICE: tokens per second of decode behind a short prompt.
decode()
{
    "$build/catflap" bench "$1" --device "$4" --vram "$2" --ram 512M --ctx 128 --contexts 16 -n "$3" \
        --samples 1 --csv -q | awk -F, '$2 == "decode" && $7 == "compute" { print $5 }'
}
median() { printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# compare NAME MODEL VRAM TOKENS
compare()
{
    local name=$1 ocl=() vk=() o v
    shift
    for ((i = 1; i <= rounds; i++)); do
        o=$(decode "$1" "$2" "$3" opencl)
        v=$(decode "$1" "$2" "$3" vulkan)
        ocl+=("$o") vk+=("$v")
        echo "$name, round $i: opencl $o, vulkan $v tokens/s"
    done
    o=$(median "${ocl[@]}") v=$(median "${vk[@]}")
    echo "$name: opencl $o, vulkan $v, ratio $(awk "BEGIN { printf \"%.1f\", $o / $v }")"
}
compare "bundled model" models/demo 30M 48
compare "$(du -sBM "$dir/large" | cut -f1) model" "$dir/large" 1200M 8
