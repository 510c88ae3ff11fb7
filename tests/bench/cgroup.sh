# A memory cgroup of its own for a bench, v1 or v2, whichever the machine has. To be sourced.
#
#     cgroup_make BYTES || exit 77     the page cache counts towards BYTES
#     cgroup_run COMMAND...            in it
#     cgroup_peak                      bytes, as the kernel counts; nothing where it does not say
#     cgroup_leave                     removes it; for a trap
group= group_peak=

cgroup_make()
{
    local v1=/sys/fs/cgroup/memory v2=/sys/fs/cgroup limit
    if [ -d "$v1" ] && mkdir "$v1/catflap-$$" 2>/dev/null; then
        group=$v1/catflap-$$ limit=memory.limit_in_bytes group_peak=memory.max_usage_in_bytes
    elif mkdir "$v2/catflap-$$" 2>/dev/null && [ -e "$v2/catflap-$$/memory.max" ]; then
        group=$v2/catflap-$$ limit=memory.max group_peak=memory.peak
        [ ! -e "$group/memory.swap.max" ] || echo 0 >"$group/memory.swap.max"
    else
        rmdir "$v2/catflap-$$" 2>/dev/null || true
        echo "no memory cgroup can be made here (root, or a delegated one, is needed)" >&2
        return 1
    fi
    echo "$1" >"$group/$limit"
}

# The shell that joins the group becomes the command.
cgroup_run()
{
    bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' - "$group" "$@"
}

cgroup_peak()
{
    [ ! -e "$group/$group_peak" ] || cat "$group/$group_peak"
}

cgroup_leave()
{
    [ -z "$group" ] || rmdir "$group"
}
