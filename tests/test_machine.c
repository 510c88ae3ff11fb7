/* Budgets that nobody gave come from what the machine has left. Catches a container's limit that is
 * overlooked (and a run that the kernel kills for it), a limit of a group further up, a group path
 * of the host that does not exist inside, file pages counted as used, "max" or version 1's huge
 * number taken for a limit, and a device filled beyond what other programs leave.
 *
 * The files of /proc and /sys are written here, below a folder of their own. */
#include "runtime/base/machine.h"

#include <sched.h>
#include <sys/stat.h>

#include "tests/check.h"
#include "tests/support/sized.h"
#include "tests/support/tmpfiles.h"

#define MIB (1ull << 20)

static tmp_dir tmp;
static char root[512];
static unsigned roots;

static void file_put(const char *path, const char *text);

/* A new machine without a limit: 8000 MiB are available. */
static void machine_new(void)
{
    char name[32];
    snprintf(name, sizeof name, "root%u", roots++);
    snprintf(root, sizeof root, "%s", tmp_path(&tmp, name));
    mkdir(root, 0777);
    file_put("/proc/meminfo", "MemTotal:       16384000 kB\nMemFree:          100 kB\n"
                              "MemAvailable:    8192000 kB\nBuffers: 7 kB\n");
}

static void file_put(const char *path, const char *text)
{
    char full[1200];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        mkdir(full, 0777);
        *at = '/';
    }
    tmp_write(full, text, strlen(text));
}

static void check_left(uint64_t want_mib, const char *from)
{
    cf_machine m;
    cf_machine_look(&m, root);
    CHECK_INT(m.available, want_mib * MIB);
    CHECK_STR(m.from, from);
}

static void group_v2(const char *group, const char *max, const char *high, const char *current,
                     const char *stat)
{
    char path[256];
    const char *names[] = {"memory.max", "memory.high", "memory.current", "memory.stat"};
    const char *texts[] = {max, high, current, stat};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", group, names[i]);
        if (texts[i])
            file_put(path, texts[i]);
    }
}

static void group_v1(const char *group, const char *limit, const char *used, const char *stat)
{
    char path[256];
    const char *names[] = {"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"};
    const char *texts[] = {limit, used, stat};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/%s", group, names[i]);
        if (texts[i])
            file_put(path, texts[i]);
    }
}

static void test_no_limit(void)
{
    cf_machine m;
    machine_new();
    check_left(8000, "MemAvailable"); /* no cgroups at all */
    file_put("/proc/self/cgroup", "0::/user.slice/a\n");
    group_v2("/user.slice/a", "max\n", "max\n", "1048576\n", NULL);
    check_left(8000, "MemAvailable");
    file_put("/proc/self/cgroup", "4:memory:/b\n0::/\n");
    group_v1("/b", "9223372036854771712\n", "1048576\n", NULL);
    check_left(8000, "MemAvailable");
    cf_machine_look(&m, root);
    CHECK_INT(m.mem_available, 8000 * MIB);
    /* Nothing to go by, and a limit alone. */
    snprintf(root, sizeof root, "%s", tmp_path(&tmp, "nothing"));
    check_left(0, "MemAvailable");
    mkdir(root, 0777);
    file_put("/proc/self/cgroup", "0::/a\n");
    group_v2("/a", "104857600\n", NULL, "1048576\n", NULL);
    check_left(99, "memory.max of the cgroup /a");
}

static void test_v2(void)
{
    machine_new();
    file_put("/proc/self/cgroup", "0::/user.slice/a.scope\n");
    group_v2("/user.slice/a.scope", "1073741824\n", "max\n", "536870912\n",
             "anon 1\ninactive_file_x 5\ninactive_file 104857600\nactive_file 3\n");
    check_left(1024 - 512 + 100, "memory.max of the cgroup /user.slice/a.scope");
    group_v2("/user.slice/a.scope", NULL, "838860800\n", NULL, NULL); /* 800 MiB */
    check_left(800 - 512 + 100, "memory.high of the cgroup /user.slice/a.scope");
    /* A group above leaves less. */
    group_v2("/user.slice", "2147483648\n", "max\n", "2126512128\n", NULL); /* 20 MiB left */
    check_left(20, "memory.max of the cgroup /user.slice");
    /* Used up, or beyond. */
    group_v2("/user.slice", NULL, NULL, "2200000000\n", NULL);
    check_left(0, "memory.max of the cgroup /user.slice");
}

/* In a container the path may be the host's, and the mount the container's own group. */
static void test_container(void)
{
    machine_new();
    file_put("/proc/self/cgroup", "0::/docker/0123456789abcdef\n");
    group_v2("", "314572800\n", "max\n", "104857600\n", "inactive_file 0\n");
    check_left(200, "memory.max of the cgroup /");
    machine_new();
    file_put("/proc/self/cgroup", "12:cpu,cpuacct:/x\n7:memory:/docker/0123456789abcdef\n");
    group_v1("", "314572800\n", "104857600\n", "cache 5\ntotal_inactive_file 52428800\n");
    check_left(250, "memory.limit_in_bytes of the cgroup /");
    /* A namespace: the path is "/". */
    file_put("/proc/self/cgroup", "7:memory:/\n");
    check_left(250, "memory.limit_in_bytes of the cgroup /");
}

static void test_v1(void)
{
    machine_new();
    /* Controllers that are mounted together, and a name that only begins alike. */
    file_put("/proc/self/cgroup", "9:memoryx:/wrong\n8:hugetlb,memory,pids:/jobs/7\n0::/right\n");
    group_v1("/wrong", "1048576\n", "0\n", NULL);
    group_v1("/jobs/7", "524288000\n", "104857600\n", NULL);
    check_left(400, "memory.limit_in_bytes of the cgroup /jobs/7");
    group_v1("/jobs", "209715200\n", "104857600\n", NULL);
    check_left(100, "memory.limit_in_bytes of the cgroup /jobs");
    /* Both versions at once: the lesser counts. */
    group_v2("/right", "73400320\n", "max\n", "10485760\n", NULL);
    check_left(60, "memory.max of the cgroup /right");
}

static void test_damaged(void)
{
    machine_new();
    file_put("/proc/self/cgroup", "memory\n::\n0:\n0::relative\n:::/x\n\n1:memory:/a\n");
    group_v1("/a", "junk\n", "5\n", NULL);
    check_left(8000, "MemAvailable");
    group_v1("/a", "104857600\n", "junk\n", NULL);
    check_left(8000, "MemAvailable");
    group_v1("/a", "104857600\n", "52428800\n",
             "total_inactive_file\ntotal_inactive_file 99999999999\n");
    check_left(100, "memory.limit_in_bytes of the cgroup /a");
    char longer[4000];
    memset(longer, 'x', sizeof longer);
    memcpy(longer, "1:memory:/", 10);
    longer[sizeof longer - 1] = 0;
    file_put("/proc/self/cgroup", longer);
    check_left(8000, "MemAvailable");
}

/* ---- the device's default ---- */

static void test_device_default(void)
{
    sized_model m;
    cf_memory_plan plan;
    cf_err err = {0};
    cf_options o;
    cf_options_init(&o);
    REQUIRE(sized_model_open(&m, "models/demo"));
    cf_gpu_info gpu = {
        .backend = "vulkan", .heap_bytes = 8000 * MIB, .max_alloc_bytes = 4000 * MIB};
    REQUIRE(cf_memory_plan_make(&plan, m.model, &gpu, &o, m.align, m.tokenizer, &err) == 0);
    CHECK_INT(plan.vram_budget, plan.vram_all); /* a small model on a large device */
    CHECK_STR(plan.vram_from, "all that this model can use");
    uint64_t all = plan.vram_all;
    gpu.free_bytes = 256 * MIB + all - MIB; /* others have the rest */
    REQUIRE(cf_memory_plan_make(&plan, m.model, &gpu, &o, m.align, m.tokenizer, &err) == 0);
    CHECK_INT(plan.vram_budget, all - MIB);
    CHECK_HAS(plan.vram_from, "that the driver says are free on the device, less room of 256 MiB");
    gpu.free_bytes = 100 * MIB; /* less than the room */
    CHECK_INT(cf_memory_plan_make(&plan, m.model, &gpu, &o, m.align, m.tokenizer, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "--vram 0 is too small");
    gpu.free_bytes = 0;
    gpu.heap_bytes = 8 * ((all - MIB) / 7 / 8 * 8);
    REQUIRE(cf_memory_plan_make(&plan, m.model, &gpu, &o, m.align, m.tokenizer, &err) == 0);
    CHECK_INT(plan.vram_budget, gpu.heap_bytes / 8 * 7);
    CHECK_HAS(plan.vram_from, "7/8 of the device's ");
    o.vram_bytes = all;
    o.ram_bytes = 64 * MIB;
    REQUIRE(cf_memory_plan_make(&plan, m.model, &gpu, &o, m.align, m.tokenizer, &err) == 0);
    CHECK_STR(plan.vram_from, "as given");
    CHECK_STR(plan.ram_from, "as given");
    sized_model_close(&m);
}

/* More threads than processors would take turns: containers have quotas, programs have masks. */
static void processors(void)
{
    cpu_set_t all, one;
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
    int most = CPU_COUNT(&all);
    size_t first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    machine_new();
    CHECK_INT(cf_machine_processors(root), most);
    file_put("/proc/self/cgroup", "0::/a/b\n");
    file_put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    CHECK_INT(cf_machine_processors(root), most);
    file_put("/sys/fs/cgroup/a/cpu.max", "50000 100000\n"); /* half of one */
    CHECK_INT(cf_machine_processors(root), 1);
    file_put("/sys/fs/cgroup/a/cpu.max", "150000 100000\n"); /* one and a half */
    CHECK_INT(cf_machine_processors(root), most < 2 ? most : 2);
    machine_new();
    file_put("/proc/self/cgroup", "3:cpu,cpuacct:/c\n0::/\n");
    file_put("/sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
    file_put("/sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
    CHECK_INT(cf_machine_processors(root), most);
    file_put("/sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "100000\n");
    CHECK_INT(cf_machine_processors(root), 1);
    machine_new();
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK_INT(cf_machine_processors(root), 1);
    CHECK_INT(sched_setaffinity(0, sizeof all, &all), 0);
}

int main(void)
{
    tmp_dir_init(&tmp);
    RUN(test_no_limit);
    RUN(test_v2);
    RUN(test_container);
    RUN(test_v1);
    RUN(test_damaged);
    RUN(test_device_default);
    RUN(processors);
    tmp_dir_finish(&tmp);
    return check_done();
}
