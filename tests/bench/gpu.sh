#!/usr/bin/env bash
# Everything that wants a real GPU, in one call: tests on it, the ops beside its memory's ceiling, a
# resident and a streamed model of LongCat-Flash-Lite's shape, and a timeline of copies beside compute.
#
#     tests/bench/gpu.sh BUILD [OUT [LAYERS [SECONDS]]]
#
# Takes the first GPU of `catflap info --devices` (a software device only with ANY_DEVICE=1, to try the
# script). OUT, ./gpu-report unless given, gets report.txt, statistics and timelines. LAYERS, 4 unless
# given, of the model: 5 GiB of $TMPDIR each, and of the GPU for the resident run. SECONDS: after so many
# no further part is begun (540), so that it fits a borrowed machine. Exits 1 when a test failed.
set -u
build=$1
out=${2:-gpu-report}
layers=${3:-4}
limit=${4:-540}
begin=$SECONDS
failed=0
mkdir -p "$out"
dir=$(mktemp -d "${TMPDIR:-/tmp}/catflap-gpu-XXXXXX")
trap 'rm -rf "$dir"' EXIT
exec > >(tee "$out/report.txt") 2>&1

device=$("$build/catflap" info --devices --json |
    jq -r --argjson any "${ANY_DEVICE:-0}" \
        '[.devices[] | select($any == 1 or (.cpu | not))][0] | "\(.backend):\(.index)"')
if [ -z "$device" ] || [ "$device" = "null:null" ]; then
    echo "gpu.sh: there is no GPU here; see $build/catflap info --devices"
    exit 77
fi
"$build/catflap" info --devices

# part TITLE COMMAND...: runs it unless the time is up.
part() {
    local title=$1 from=$SECONDS
    shift
    if [ $((SECONDS - begin)) -ge "$limit" ]; then
        echo "== $title: left out, $limit s are over"
        return
    fi
    echo "== $title"
    "$@" || { echo "FAILED: $title ($?)"; failed=1; }
    echo "-- $((SECONDS - from)) s"
}

# Several programs at a time: they are small, the device is not.
tests() {
    local t rc=0
    for t in "$@"; do
        # shellcheck disable=SC2086
        timeout 300 "$build/tests/"$t >"$out/${t%% *}.txt" 2>&1
        case $? in 0 | 77) ;; *) rc=1 && grep -B2 -A2 FAIL "$out/${t%% *}.txt" | tail -40 ;; esac
        tail -1 "$out/${t%% *}.txt"
    done
    return $rc
}

model() {
    "$build/catflap" mkmodel "$dir/lite" --shape longcat-flash-lite --layers "$layers" --ngram-ratio 1 \
        --vocab 32768 --max-ctx 4096 --seed 7 ${SMALL:-}
}

decode() { # NAME, then options; "half" stands for --vram and that many bytes
    local name=$1
    shift
    [ "${1:-}" != half ] || set -- --vram "$(half)" "${@:2}"
    "$build/catflap" run "$dir/lite" --ids "$dir/ids" -n 48 --print-ids --device "$device" --ctx 1024 \
        --stats "$out/$name-stats.json" "$@" >/dev/null || return 1
    jq -c '{tok_per_s, hit: .experts.decode.hit_rate, io: .io.gb_per_s, stall: .stall_seconds}' "$out/$name-stats.json"
}

# Device memory for half of the experts, by the memory plan's own account.
half() { "$build/catflap" info "$dir/lite" --device "$device" --ctx 1024 --json | jq ".memory | ((.vram_all_experts + .vram.least) / 2 | floor)"; }

part "tests" tests "test_ops" "test_vulkan" "test_vulkan_ops" "test_models ${device%%:*}" "test_window ${device%%:*}" \
    "test_identity ${device%%:*} short"
part "ops" "$build/bench/bench_ops" --device "$device" --seconds 0.2
part "a model of Lite's shape, $layers layers" model
seq 1 256 | tr '\n' ' ' >"$dir/ids"
part "resident, f32 activations" decode resident
part "resident, timeline" decode resident-timeline --timeline "$out/resident-timeline.json"
part "streamed from half" decode half half
part "streamed from half, timeline" decode half-timeline half --timeline "$out/half-timeline.json"
part "bench" "$build/catflap" bench "$dir/lite" --device "$device" --contexts 128,512 --samples 3
exit $failed
