/* Is it really streamed? One run of a large checkpoint through a cache of a tenth of its experts,
 * and the kernel's own figures beside the engine's.
 *
 *     bench_stream MODEL DEVICE [TOKENS [SHARE [MB_PER_S]]]
 *
 * SHARE: of the experts, in percent. MB_PER_S: reads are held back to that speed (megabytes), so that
 * the drive is the slower part on any machine; the I/O term of a token, its missed bytes over that
 * speed, is then printed beside the time that it took.
 *
 * Checks, and exits 1 when one fails:
 *   read_bytes   of /proc/self/io grows by what the statistics call io.bytes, within 1 %
 *   rchar        (what read and pread return) grows by the headers and small files alone
 *   page cache   holds less than 1 % of the model afterwards (files are synced and dropped first)
 *   memory       VmHWM above that of an opened device stays within --vram + --ram + 64 MiB */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/sized.h"

enum { PROMPT = 16, PAGE = 4096, RAM_BYTES = 256 << 20, SLACK_BYTES = 64 << 20 };

static int failures;

static void verdict(const char *what, bool good, const char *detail)
{
    printf("%-14s %s  %s\n", what, good ? "ok  " : "FAIL", detail);
    failures += !good;
}

/* ---- what the kernel says ---- */

static unsigned long long proc_number(const char *path, const char *key)
{
    FILE *f = fopen(path, "r");
    char line[200];
    unsigned long long value = 0;
    size_t n = strlen(key);
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, n) == 0)
            value = strtoull(line + n, NULL, 10);
    if (f)
        fclose(f);
    return value;
}

struct files {
    unsigned long long bytes, cached, small_bytes, headers;
    uint32_t shards;
};

static bool is_shard(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && strcmp(dot, ".safetensors") == 0;
}

/* Bytes of a file that are in the page cache. */
static unsigned long long cached_bytes(int fd, uint64_t bytes)
{
    size_t pages = (size_t)((bytes + PAGE - 1) / PAGE);
    unsigned char *in = malloc(pages + 1);
    void *map = bytes ? mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    unsigned long long n = 0;
    if (in && map != MAP_FAILED && mincore(map, bytes, in) == 0)
        for (size_t i = 0; i < pages; i++)
            n += in[i] & 1;
    if (map != MAP_FAILED)
        munmap(map, bytes);
    free(in);
    return n * PAGE;
}

/* Looks at every shard; with `drop` its pages are written out and dropped first. */
static struct files files_look(const char *dir, bool drop)
{
    struct files f = {0};
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char path[1200];
        struct stat st;
        uint64_t header = 0;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
            if (fd >= 0)
                close(fd);
            continue;
        }
        if (!is_shard(e->d_name)) {
            f.small_bytes += (unsigned long long)st.st_size;
            close(fd);
            continue;
        }
        if (pread(fd, &header, sizeof header, 0) == (ssize_t)sizeof header)
            f.headers += header + sizeof header;
        if (drop) {
            fdatasync(fd);
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        }
        f.shards++;
        f.bytes += (unsigned long long)st.st_size;
        f.cached += cached_bytes(fd, (uint64_t)st.st_size);
        close(fd);
    }
    if (d)
        closedir(d);
    return f;
}

/* ---- the run ---- */

static int run(cf_engine *e, uint32_t tokens, cf_err *err)
{
    cf_session *s = NULL;
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)((uint32_t)i * 257u % e->model->spec.vocab);
    int rc = cf_session_create(&s, e, err);
    if (rc == 0)
        rc = cf_session_extend(s, prompt, PROMPT, CF_PHASE_PROMPT, NULL, err);
    for (uint32_t i = 0; rc == 0 && i < tokens; i++) {
        int32_t id = (int32_t)((i * 7919u + 13u) % e->model->spec.vocab);
        rc = cf_session_extend(s, &id, 1, CF_PHASE_DECODE, NULL, err);
    }
    cf_session_destroy(&s);
    return rc;
}

static unsigned long long bare_hwm(const char *device)
{
    cf_gpu_info infos[16];
    cf_gpu *gpu = NULL;
    cf_gpu_list(infos, 16, NULL, 0);
    cf_gpu_open(&gpu, device, &(cf_gpu_options){0}, NULL);
    cf_gpu_close(&gpu);
    return proc_number("/proc/self/status", "VmHWM:") << 10;
}

static void report(const cf_options *o, const cf_stats *s, const struct files *f)
{
    printf("model          %u shards, %.2f GiB\n", f->shards, (double)f->bytes / (1 << 30));
    printf("device         %s, %.0f + %.0f MiB, %llu slots of %.2f MiB\n", o->device,
           (double)o->vram_bytes / (1 << 20), (double)o->ram_bytes / (1 << 20),
           (unsigned long long)s->slots, (double)s->slot_bytes / (1 << 20));
    printf("prefill        %llu tokens, %.2f s\n", (unsigned long long)s->prompt_tokens,
           s->prefill_s);
    printf("decode         %llu tokens, %.2f s, %.2f tokens/s, %.1f %% of lookups hit\n",
           (unsigned long long)s->generated_tokens, s->decode_s,
           (double)s->generated_tokens / s->decode_s,
           100 * (double)s->decode.vram_hits / (double)s->decode.lookups);
    printf("io             %llu reads, %.2f GiB, %.2f GB/s while reading\n",
           (unsigned long long)s->io_reads, (double)s->io_bytes / (1 << 30),
           (double)s->io_bytes / s->io_busy_s / 1e9);
    printf("stall          io %.2f s, copy %.2f s, device %.2f s\n", s->stall_io_s, s->stall_copy_s,
           s->stall_device_s);
}

/* The two terms of a decoded token: missed bytes at the drive's speed, and all the rest. */
static void terms_report(const cf_stats *s, uint64_t record_bytes, uint64_t bytes_per_second)
{
    double tokens = (double)s->generated_tokens;
    double missed = (double)s->decode.misses * (double)record_bytes;
    double io_s = missed / (double)bytes_per_second / tokens, token_s = s->decode_s / tokens;
    printf("terms          %.1f MB missed a token: %.1f ms at %.0f MB/s; a token took %.1f ms\n",
           missed / tokens / 1e6, io_s * 1e3, (double)bytes_per_second / 1e6, token_s * 1e3);
    printf("of the bound   %.3f (I/O term over time taken)\n", io_s / token_s);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: bench_stream MODEL DEVICE [TOKENS [SHARE [MB_PER_S]]]\n");
        return 2;
    }
    uint32_t tokens = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 16;
    uint32_t share = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 10;
    uint64_t speed = argc > 5 ? strtoull(argv[5], NULL, 10) * 1000000 : 0;
    cf_io_fault throttle = {.eio_file = -1, .bytes_per_second = speed};
    char text[200];
    cf_options o;
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_stats s = {0};
    sized_model m;
    cf_options_init(&o);
    o.device = argv[2];
    o.ctx = 512;
    o.chunk = PROMPT;
    o.io = "uring";
    o.ram_bytes = RAM_BYTES;
    o.fault = speed ? &throttle : NULL;
    unsigned long long bare = bare_hwm(o.device);
    if (!sized_plan_open(&m, argv[1]) || !sized_budgets(&m, &o, m.all_slots * share / 100, false))
        return 1;
    struct files before = files_look(argv[1], true);
    unsigned long long read_before = proc_number("/proc/self/io", "read_bytes:");
    unsigned long long rchar_before = proc_number("/proc/self/io", "rchar:");
    int rc = cf_engine_open(&e, argv[1], &o, &err);
    if (rc == 0)
        rc = run(e, tokens, &err);
    if (rc < 0) {
        fprintf(stderr, "bench_stream: %s\n", err.msg);
        cf_engine_close(&e);
        return 1;
    }
    cf_engine_get_stats(e, &s);
    cf_engine_info info;
    cf_engine_get_info(e, &info);
    unsigned long long read_bytes = proc_number("/proc/self/io", "read_bytes:") - read_before;
    unsigned long long rchar = proc_number("/proc/self/io", "rchar:") - rchar_before;
    cf_engine_close(&e);
    unsigned long long hwm = (proc_number("/proc/self/status", "VmHWM:") << 10) - bare;
    struct files after = files_look(argv[1], false);
    report(&o, &s, &after);
    if (speed)
        terms_report(&s, info.record_bytes, speed);

    double ratio = (double)read_bytes / (double)s.io_bytes;
    snprintf(text, sizeof text, "%llu of the kernel, %llu of the statistics: %.4f", read_bytes,
             (unsigned long long)s.io_bytes, ratio);
    verdict("read_bytes", ratio > 0.99 && ratio < 1.01, text);
    /* The index and the headers are read; then there are some files of /proc and the drivers'. */
    unsigned long long expected = after.headers + after.small_bytes + (16u << 20);
    snprintf(text, sizeof text, "%llu by read and pread; headers and small files are %llu", rchar,
             after.headers + after.small_bytes);
    verdict("rchar", rchar <= expected, text);
    double cached = 100 * (double)after.cached / (double)after.bytes;
    snprintf(text, sizeof text, "%.3f %% of the model (before: %.3f %%)", cached,
             100 * (double)before.cached / (double)before.bytes);
    verdict("page cache", cached < 1, text);
    unsigned long long budget = o.vram_bytes + o.ram_bytes;
    snprintf(text, sizeof text, "%llu MiB above an open device's %llu; promised %llu", hwm >> 20,
             bare >> 20, budget >> 20);
    verdict("memory", hwm <= budget + SLACK_BYTES, text);
    sized_model_close(&m);
    return failures ? 1 : 0;
}
