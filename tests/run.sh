#!/usr/bin/env bash
# Runs groups of tests, TEST_JOBS at a time (one a processor), one line each as they end: their cases,
# their seconds; at the end one line with the sums over all cases. Arguments:
#     build                          every test program of a build folder
#     'build/tests/test_models ref'  a program and its arguments
#     build-fuzz/tests/fuzz/fuzz_x   a fuzz target, for FUZZ_SECONDS, over tests/fuzz/corpus/x; what
#                                    it finds goes to build-fuzz/new/x
#     'layers=tools/layers.sh'       a name and a command
# A group tells its cases in its last line ("=== 3 passed, 0 failed, 0 skipped"), or is one case: exit
# status 0 passed, 77 skipped. A program that dies counts as one failure.
set -u
passed=0 failed=0 skipped=0
n_groups=0
places=${TEST_JOBS:-$(nproc)}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
# Software Vulkan and OpenCL compile each kernel once, not once a program.
export MESA_SHADER_CACHE_DIR=${MESA_SHADER_CACHE_DIR:-$PWD/build/mesa-cache}
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$PWD/build/cache}
export POCL_CACHE_DIR=${POCL_CACHE_DIR:-$PWD/build/pocl-cache}
# intercept_tls_get_addr=0: what the checker notes of thread-local storage of libraries is wrong for some
# driver threads, and reading there ends it. Static thread-local storage is read (dlerror's text is there).
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=tests/lsan.supp:print_suppressions=0:intercept_tls_get_addr=0}
start=$(date +%s%N)

seconds_since() { awk -v b="$1" -v e="$(date +%s%N)" 'BEGIN { printf "%.1f", (e - b) / 1e9 }'; }

fuzz_command()
{
    local name=${1##*/fuzz_} dir=${1%%/*}
    local new=$dir/new/$name corpus=tests/fuzz/corpus/$name
    mkdir -p "$new"
    [ -d "$corpus" ] || corpus=
    # What it finds ends in 77 unless told otherwise, which would pass for a test that was skipped.
    echo "$1 -max_total_time=${FUZZ_SECONDS:-5} -timeout=20 -rss_limit_mb=2048 -error_exitcode=1" \
        -timeout_exitcode=1 \
        "-artifact_prefix=$dir/crash-$name- $new $corpus"
}

# ThreadSanitizer needs its address space where it expects it.
prefix_of()
{
    local bits
    bits=$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)
    case $1 in
    build-thread/*) [ "$bits" -gt 28 ] && setarch -R true 2>/dev/null && echo "setarch -R" ;;
    esac
}

# group LABEL LIMIT_SECONDS COMMAND...: waits for a free place, then runs beside the others.
group()
{
    while [ "$(jobs -rp | wc -l)" -ge "$places" ]; do
        wait -n
        reports
    done
    n_groups=$((n_groups + 1))
    group_run "$n_groups" "$@" &
}

# In a process of its own: leaves what is to be said in $dir/N.told, and the counts in $dir/N.counts.
group_run()
{
    local out=$dir/$1.out told=$dir/$1.told label=$2 limit=$3 begin status p="" f="" s=""
    local counts=$dir/$1.counts
    shift 3
    begin=$(date +%s%N)
    timeout -k 10 "$limit" "$@" </dev/null >"$out" 2>&1
    status=$?
    read -r p f s < <(sed -n 's/^=== \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$out" | tail -1)
    if [ -z "$p" ]; then
        p=0 f=0 s=0
        case $status in 0) p=1 ;; 77) s=1 ;; esac
    fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 77 ] && [ "$f" -eq 0 ]; then
        f=1
        echo "exit status $status" >>"$out"
    fi
    local word=ok
    [ "$p" -gt 0 ] || word=skip
    [ "$f" -eq 0 ] || word=FAIL
    {
        printf '%-4s %-44s %4d passed %3d failed %3d skipped %8.1f s\n' "$word" "$label" "$p" "$f" "$s" \
            "$(seconds_since "$begin")"
        [ "$f" -eq 0 ] && [ -z "${VERBOSE:-}" ] && grep '    skip: ' "$out"
        if [ "$f" -ne 0 ] || [ -n "${VERBOSE:-}" ]; then tail -60 "$out"; fi
    } >"$told"
    echo "$p $f $s" >"$counts.new"
    mv "$counts.new" "$counts"
}

# Tells what has ended since, and adds it up.
reports()
{
    local counts p f s
    for counts in "$dir"/*.counts; do
        [ -e "$counts" ] || continue
        read -r p f s <"$counts"
        cat "${counts%.counts}.told"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
        rm -f "${counts%.counts}".*
    done
}

# program 'PATH ARGUMENTS'
program()
{
    local path=${1%% *} label limit=${TEST_TIMEOUT:-900}
    label=$(basename "$path")${1#"$path"}
    case $path in build-*) label="${path%%/*} $label" && label=${label#build-} ;; esac
    case $path in
    */fuzz_*)
        if [ ! -x "$path" ]; then # without clang
            printf 'skip %-44s %s is not built\n' "$label" "$path"
            skipped=$((skipped + 1))
            return
        fi
        # shellcheck disable=SC2046
        group "$label" $((${FUZZ_SECONDS:-5} + 120)) $(fuzz_command "$path")
        ;;
    *)
        # shellcheck disable=SC2046,SC2086
        group "$label" "$limit" $(prefix_of "$path") $1
        ;;
    esac
}

# Programs that run on every device, each device apart: these take the most time, and come first.
by_device="test_ops test_models test_gguf_models test_activations"

for arg in "$@"; do
    if [ -d "$arg" ]; then
        for name in $by_device; do
            for backend in vulkan opencl ref; do
                program "$arg/tests/$name $backend"
            done
        done
        for source in tests/test_*.c; do
            name=$(basename "$source" .c)
            case " $by_device " in *" $name "*) ;; *) program "$arg/tests/$name" ;; esac
        done
    elif [[ $arg == *=* ]]; then
        # shellcheck disable=SC2086
        group "${arg%%=*}" "${TEST_TIMEOUT:-900}" ${arg#*=}
    else
        program "$arg"
    fi
done
while [ -n "$(jobs -rp)" ]; do
    wait -n
    reports
done
reports
echo "$(seconds_since "$start") s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
