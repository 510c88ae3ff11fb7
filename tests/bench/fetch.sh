#!/usr/bin/env bash
# make bench-fetch: cold records through catflap's fetcher beside fio: same file, read size, depth,
# O_DIRECT, registered buffers; in turn, so that a drive that changes its mind does so to both.
#
#     tests/bench/fetch.sh BUILD [ROUNDS [SECONDS]]
#
# Prints a line per record size: the medians in MB/s and the ratio of each round's pair, median of
# them. Takes 2 GiB of $TMPDIR (default /tmp), which should be on the drive in question.
set -eu
build=$1
rounds=${2:-5}
seconds=${3:-3}
command -v fio >/dev/null || { echo "bench-fetch: fio is missing (package fio)" >&2; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-fetch-XXXXXX")
trap 'rm -rf "$dir"' EXIT
head -c 2147483648 /dev/urandom >"$dir/file"
sync "$dir/file"

median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# Records of $1 bytes: as many 512 KiB reads behind one another, then elsewhere.
with_fio() {
    local split=$((512 << 10)) reads
    [ "$1" -ge "$split" ] || split=$1
    reads=$(($1 / split))
    fio --name=records --filename="$dir/file" --readonly --direct=1 --ioengine=io_uring --fixedbufs \
        --registerfiles --bs="$split" --iodepth=64 --rw=randread:"$reads" --norandommap --time_based \
        --runtime="$seconds" --output-format=json 2>/dev/null |
        awk -F'[:,]' '/"read" :/ { in_read = 1 } in_read && /"bw_bytes"/ { printf "%.1f\n", $2 / 1e6; exit }'
}

printf '%-14s %12s %12s %10s\n' "record bytes" "fio MB/s" "fetch MB/s" ratio
for record in $((512 << 10)) $((2 << 20)) $((5 << 20)) $((20 << 20)); do
    flying=$((64 * (512 << 10) / record + 2))
    : >"$dir/fio"
    : >"$dir/fetch"
    for _ in $(seq "$rounds"); do
        with_fio "$record" >>"$dir/fio"
        "$build/bench/bench_fetch" "$dir/file" "$record" "$seconds" $((flying > 64 ? 64 : flying)) >>"$dir/fetch"
    done
    ratio=$(paste "$dir/fio" "$dir/fetch" | awk '{ print $2 / $1 }' | median)
    printf '%-14s %12.0f %12.0f %10.3f\n' "$record" "$(median <"$dir/fio")" "$(median <"$dir/fetch")" "$ratio"
done
