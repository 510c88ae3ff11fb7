/* --vram and --ram are promises, and this does not ask the ledger whether they are kept. Catches
 * memory that nobody charged: tables that grow with the model, pages that rounding adds, buffers
 * that a device takes for itself, an import that is paid for twice; and a refusal that names a
 * number which would not do.
 *
 * Every allocation of the program goes through the wrappers here (linker: --wrap of malloc and its
 * family, mmap and its family, volkLoadDeviceTable; the JSON library is told). Their sum, at its
 * peak between open and close, is held against the budgets. Imported pages are the host's pages and
 * count once; device memory of a software device is counted where it is asked for and not again
 * inside the driver. What no wrapper sees (stacks, the driver, the C library) is in VmHWM, which a
 * child process compares with one that only opens the device.
 *
 *     test_budget --child DEVICE CHUNK VRAM RAM     prints its VmHWM in KiB; VRAM 0: no model */
#include <jansson.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/vulkan/vk.h"
#include "runtime/base/align.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

/* ---- the books ---- */

enum { HEAP_SLOTS = 1 << 20, MAPS = 8192, MEMORIES = 4096 };

struct held {
    uintptr_t at;
    uint64_t bytes;
};

static struct {
    pthread_mutex_t lock;
    bool on;
    uint64_t now, peak;
    uint64_t heap, maps_bytes, device;          /* parts of `now` */
    uint64_t peak_heap, peak_maps, peak_device; /* when it was highest */
    struct held heap_held[HEAP_SLOTS];          /* by address, open addressing */
    struct held maps[MAPS];                     /* writable ranges */
    struct held memories[MEMORIES];             /* VkDeviceMemory */
    uint32_t n_maps, n_memories;
    bool overflow;
} books = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* All of these are called with the lock. */
static void sum_changed(void)
{
    books.now = books.heap + books.maps_bytes + books.device;
    if (books.now <= books.peak)
        return;
    books.peak = books.now;
    books.peak_heap = books.heap;
    books.peak_maps = books.maps_bytes;
    books.peak_device = books.device;
}

static struct held *heap_find(uintptr_t at)
{
    size_t i = (at >> 4) * 0x9e3779b97f4a7c15u >> 44;
    for (size_t tries = 0; tries < HEAP_SLOTS; tries++, i = (i + 1) % HEAP_SLOTS)
        if (books.heap_held[i].at == at || books.heap_held[i].at == 0)
            return &books.heap_held[i];
    books.overflow = true;
    return NULL;
}

static void heap_add(void *p)
{
    struct held *h = p ? heap_find((uintptr_t)p) : NULL;
    if (!h)
        return;
    uint64_t bytes = malloc_usable_size(p);
    *h = (struct held){(uintptr_t)p, bytes};
    books.heap += bytes;
    sum_changed();
}

/* The place stays taken, with no bytes, until the address comes again. */
static void heap_remove(void *p)
{
    struct held *h = p ? heap_find((uintptr_t)p) : NULL;
    if (!h || !h->at)
        return;
    books.heap -= h->bytes;
    h->bytes = 0;
}

static void map_add(uintptr_t at, uint64_t bytes)
{
    if (books.n_maps == MAPS) {
        books.overflow = true;
        return;
    }
    books.maps[books.n_maps++] = (struct held){at, cf_align_up(bytes, 4096)};
    books.maps_bytes += cf_align_up(bytes, 4096);
    sum_changed();
}

static void map_remove(uintptr_t at, uint64_t bytes)
{
    uintptr_t end = at + cf_align_up(bytes, 4096);
    uint32_t n = books.n_maps;
    for (uint32_t i = 0; i < n; i++) {
        struct held m = books.maps[i];
        uintptr_t m_end = m.at + m.bytes;
        uintptr_t from = m.at > at ? m.at : at, to = m_end < end ? m_end : end;
        if (from >= to)
            continue;
        books.maps_bytes -= to - from;
        books.maps[i].bytes = from - m.at;
        if (to < m_end && books.n_maps < MAPS)
            books.maps[books.n_maps++] = (struct held){to, m_end - to};
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < books.n_maps; i++)
        if (books.maps[i].bytes)
            books.maps[kept++] = books.maps[i];
    books.n_maps = kept;
}

/* ---- the wrappers ---- */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
char *__real_strdup(const char *s);
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
int __real_munmap(void *at, size_t n);
int __real_mprotect(void *at, size_t n, int prot);
void __real_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);
char *__wrap_strdup(const char *s);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *at, size_t n);
int __wrap_mprotect(void *at, size_t n, int prot);
void __wrap_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device);

static void *heap_added(void *p)
{
    if (!books.on)
        return p;
    pthread_mutex_lock(&books.lock);
    heap_add(p);
    pthread_mutex_unlock(&books.lock);
    return p;
}

/* Before the memory can be given out again. */
static void heap_removed(void *p)
{
    if (!books.on || !p)
        return;
    pthread_mutex_lock(&books.lock);
    heap_remove(p);
    pthread_mutex_unlock(&books.lock);
}

void *__wrap_malloc(size_t n)
{
    return heap_added(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return heap_added(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    heap_removed(p); /* none here fails */
    return heap_added(__real_realloc(p, n));
}

void __wrap_free(void *p)
{
    heap_removed(p);
    __real_free(p);
}

char *__wrap_strdup(const char *s)
{
    return heap_added(__real_strdup(s));
}

void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
    void *p = __real_mmap(at, n, prot, flags, fd, off);
    pthread_mutex_lock(&books.lock);
    if (books.on && p != MAP_FAILED && (prot & PROT_WRITE))
        map_add((uintptr_t)p, n);
    pthread_mutex_unlock(&books.lock);
    return p;
}

int __wrap_munmap(void *at, size_t n)
{
    pthread_mutex_lock(&books.lock);
    map_remove((uintptr_t)at, n);
    pthread_mutex_unlock(&books.lock);
    return __real_munmap(at, n);
}

int __wrap_mprotect(void *at, size_t n, int prot)
{
    int rc = __real_mprotect(at, n, prot);
    pthread_mutex_lock(&books.lock);
    map_remove((uintptr_t)at, n);
    if (books.on && (prot & PROT_WRITE))
        map_add((uintptr_t)at, n);
    pthread_mutex_unlock(&books.lock);
    return rc;
}

/* A reserved address range takes no memory; it does once it may be written. */
static struct VolkDeviceTable vulkan;

static bool is_import(const VkMemoryAllocateInfo *info)
{
    for (const VkBaseInStructure *p = info->pNext; p; p = p->pNext)
        if (p->sType == VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT)
            return true;
    return false;
}

static VKAPI_ATTR VkResult VKAPI_CALL counting_allocate(VkDevice d,
                                                        const VkMemoryAllocateInfo *info,
                                                        const VkAllocationCallbacks *a,
                                                        VkDeviceMemory *out)
{
    VkResult r = vulkan.vkAllocateMemory(d, info, a, out);
    pthread_mutex_lock(&books.lock);
    if (r == VK_SUCCESS && books.on && !is_import(info)) {
        if (books.n_memories < MEMORIES)
            books.memories[books.n_memories++] =
                (struct held){(uintptr_t)*out, info->allocationSize};
        else
            books.overflow = true;
        books.device += info->allocationSize;
        sum_changed();
    }
    pthread_mutex_unlock(&books.lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL counting_free(VkDevice d, VkDeviceMemory m,
                                                const VkAllocationCallbacks *a)
{
    pthread_mutex_lock(&books.lock);
    for (uint32_t i = 0; i < books.n_memories; i++)
        if (books.memories[i].at == (uintptr_t)m) {
            books.device -= books.memories[i].bytes;
            books.memories[i] = books.memories[--books.n_memories];
            break;
        }
    pthread_mutex_unlock(&books.lock);
    vulkan.vkFreeMemory(d, m, a);
}

void __wrap_volkLoadDeviceTable(struct VolkDeviceTable *table, VkDevice device)
{
    __real_volkLoadDeviceTable(table, device);
    vulkan = *table;
    table->vkAllocateMemory = counting_allocate;
    table->vkFreeMemory = counting_free;
}

static void books_open(void)
{
    memset(books.heap_held, 0, sizeof books.heap_held);
    books.n_maps = books.n_memories = 0;
    books.now = books.peak = books.heap = books.maps_bytes = books.device = 0;
    books.overflow = false;
    books.on = true;
}

/* ---- the run ---- */

#define DEMO "models/demo"

static const char *model_dir;
static oracle *prompt;
static sized_model model;
static const char *device;

static cf_options options_make(const char *on, uint32_t chunk)
{
    cf_options o;
    cf_options_init(&o);
    o.device = on;
    o.ctx = 128;
    o.chunk = chunk;
    o.threads = 2;
    return o;
}

/* A prompt and some tokens. */
static int run(cf_engine *e, cf_err *err)
{
    cf_session *s = NULL;
    int rc = cf_session_create(&s, e, err);
    if (rc == 0)
        rc = cf_session_extend(s, prompt->prompt, prompt->n_prompt, CF_PHASE_PROMPT, NULL, err);
    for (int32_t i = 0, id = 17; rc == 0 && i < 8; i++, id = (id + 31) % 200)
        rc = cf_session_extend(s, &id, 1, CF_PHASE_DECODE, NULL, err);
    cf_session_destroy(&s);
    return rc;
}

static void books_hold(const cf_options *o)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_stats stats = {0};
    books_open();
    int rc = cf_engine_open(&e, model_dir, o, &err);
    if (rc == 0)
        rc = run(e, &err);
    if (rc == 0)
        cf_engine_get_stats(e, &stats);
    cf_engine_close(&e);
    books.on = false;
    CHECK_STR(err.msg, "");
    CHECK_INT(rc, 0);
    CHECK(!books.overflow);
    printf("    chunk %u: %llu + %llu KiB promised, %llu KiB at the peak (heap %llu, pages %llu, "
           "device %llu), the ledger says %llu + %llu\n",
           o->chunk, (unsigned long long)o->vram_bytes >> 10,
           (unsigned long long)o->ram_bytes >> 10, (unsigned long long)books.peak >> 10,
           (unsigned long long)books.peak_heap >> 10, (unsigned long long)books.peak_maps >> 10,
           (unsigned long long)books.peak_device >> 10, (unsigned long long)stats.vram_peak >> 10,
           (unsigned long long)stats.ram_peak >> 10);
    CHECK(books.peak <= o->vram_bytes + o->ram_bytes);
    /* The books see what there is to see: slots, weights, context. */
    CHECK(books.peak >= stats.vram_peak);
    CHECK(books.peak_device <= o->vram_bytes);
    CHECK(stats.vram_peak <= o->vram_bytes);
    CHECK(stats.ram_peak <= o->ram_bytes);
    /* Nothing is left but what was there before. */
    CHECK_INT(books.maps_bytes + books.device, 0);
}

enum { LEAST, LEAST_HELD, LEAST_RESIDENT, BETWEEN, ALL, SIZES };

/* The smallest budgets, with which dense weights are streamed; the same with room for some of them in
 * RAM; the smallest without; something between; enough for everything. */
static bool budget_set(cf_options *o, int which)
{
    cf_memory_plan plan;
    cf_err err = {0};
    o->vram_bytes = o->ram_bytes = 1u << 30;
    int rc = sized_plan(&model, o, &plan, &err);
    if (rc == 0) {
        uint64_t sizes[SIZES] = {plan.vram_min, plan.vram_min, plan.vram_dense,
                                 (plan.vram_dense + plan.vram_all) / 2, plan.vram_all};
        o->vram_bytes = sizes[which];
        rc = sized_plan(&model, o, &plan, &err); /* the least of RAM depends on it */
    }
    if (rc < 0) {
        printf("    %s\n", err.msg);
        return false;
    }
    CHECK(which <= LEAST_HELD || plan.dense.n_streamed == 0);
    uint64_t held = 0;
    if (which == LEAST_HELD) {
        o->ram_bytes = plan.ram_min;
        rc = sized_plan(&model, o, &plan, &err);
        held = plan.ram_dense ? (plan.ram_dense - plan.ram_min) * 3 / 4 : 0;
        CHECK_INT(rc, 0);
        CHECK(held > 0);
    }
    o->ram_bytes = which == BETWEEN ? plan.ram_min + (2 << 20)
                   : held           ? plan.ram_min + held
                   : which == ALL   ? 96u << 20
                                    : plan.ram_min;
    return true;
}

static void wrapped_sum(const char *memory, bool no_import, bool few)
{
    static const uint32_t chunks[] = {8, 64};
    for (int c = few; c < 2; c++)
        for (int which = 0; which < (few ? BETWEEN : SIZES); which++) {
            cf_options o = options_make(device, chunks[c]);
            if (which == LEAST_HELD && strcmp(memory, "auto") == 0)
                continue; /* there is one memory */
            o.memory = memory;
            o.io = which % 2 ? "pread" : "uring";
            o.no_import = no_import;
            if (!budget_set(&o, which))
                CHECK_NEVER("has no plan");
            else
                books_hold(&o);
        }
}

/* ---- refusals ---- */

static void opens(const cf_options *o)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    CHECK_INT(cf_engine_open(&e, model_dir, o, &err), 0);
    if (e)
        CHECK_INT(run(e, &err), 0);
    CHECK_STR(err.msg, "");
    cf_engine_close(&e);
}

/* The number in the sentence. */
static uint64_t refused(const cf_options *o, const char *flag)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    char head[80];
    CHECK_INT(cf_engine_open(&e, model_dir, o, &err), CF_ELIMIT);
    cf_engine_close(&e);
    bool vram = strcmp(flag, "--vram") == 0;
    snprintf(head, sizeof head, "%s %llu is too small: ", flag,
             (unsigned long long)(vram ? o->vram_bytes : o->ram_bytes));
    CHECK_HAS(err.msg, head);
    const char *at = strstr(err.msg, "small: ");
    return at ? strtoull(at + 7, NULL, 10) : 0;
}

static void refusals_name_the_number(const char *memory, bool no_import)
{
    cf_options o = options_make(device, 64);
    o.memory = memory;
    o.no_import = no_import;
    o.ram_bytes = 64u << 20;
    o.vram_bytes = 4096;
    uint64_t vram = refused(&o, "--vram");
    o.vram_bytes = vram;
    opens(&o);
    o.vram_bytes = vram - 4096;
    CHECK_INT(refused(&o, "--vram"), vram);
    o.vram_bytes = vram;
    o.ram_bytes = 4096;
    uint64_t ram = refused(&o, "--ram");
    o.ram_bytes = ram;
    opens(&o);
    o.ram_bytes = ram - 4096;
    CHECK_INT(refused(&o, "--ram"), ram);
}

/* ---- the high-water mark of a process ---- */

static uint64_t hwm_kib(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[200];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* What the child does. */
static int child_main(char **argv)
{
    cf_gpu_info infos[16];
    cf_err err = {0};
    cf_options o = options_make(argv[0], (uint32_t)strtoul(argv[1], NULL, 10));
    o.vram_bytes = strtoull(argv[2], NULL, 10);
    o.ram_bytes = strtoull(argv[3], NULL, 10);
    cf_gpu_list(infos, 16, NULL, 0);
    int rc = 0;
    if (!o.vram_bytes) {
        cf_gpu *gpu = NULL;
        rc = cf_gpu_open(&gpu, o.device, &(cf_gpu_options){.threads = o.threads}, &err);
        cf_gpu_close(&gpu);
    } else {
        cf_engine *e = NULL;
        rc = cf_engine_open(&e, model_dir, &o, &err);
        if (rc == 0)
            rc = run(e, &err);
        cf_engine_close(&e);
    }
    printf("%llu\n", rc < 0 ? 0ull : (unsigned long long)hwm_kib());
    return rc < 0;
}

static uint64_t child_hwm(uint32_t chunk, uint64_t vram, uint64_t ram)
{
    char command[600], self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    snprintf(command, sizeof command, "'%s' --child %s %u %llu %llu", self, device, chunk,
             (unsigned long long)vram, (unsigned long long)ram);
    FILE *f = popen(command, "r");
    unsigned long long kib = 0;
    if (!f || fscanf(f, "%llu", &kib) != 1)
        kib = 0;
    if (f)
        pclose(f);
    return kib << 10;
}

static void high_water(void)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    SKIP("a sanitizer's own memory is in VmHWM");
#endif
    static const uint32_t chunks[] = {8, 64};
    uint64_t bare = child_hwm(8, 0, 0);
    CHECK(bare > 0);
    for (int c = 0; c < 2; c++)
        for (int which = 0; which < SIZES; which++) {
            cf_options o = options_make(device, chunks[c]);
            if (which == LEAST_HELD)
                continue;
            if (!budget_set(&o, which)) {
                CHECK_NEVER("has no plan");
                continue;
            }
            uint64_t full = child_hwm(o.chunk, o.vram_bytes, o.ram_bytes);
            printf("    chunk %u: %llu KiB promised, VmHWM %llu KiB above %llu KiB\n", o.chunk,
                   (unsigned long long)(o.vram_bytes + o.ram_bytes) >> 10,
                   (unsigned long long)(full - bare) >> 10, (unsigned long long)bare >> 10);
            CHECK(full > bare);
            CHECK(full - bare <= o.vram_bytes + o.ram_bytes + (64u << 20));
        }
}

/* ---- */

static void model_run(const char *dir, bool ref, bool demo)
{
    static const struct {
        const char *memory, *text;
        bool no_import;
    } kinds[] = {{"auto", "as it is", false},
                 {"discrete", "slabs beside slots", false},
                 {"discrete", "staged copies", true}};
    char name[160];
    const char *tail = strrchr(dir, '/') + 1;
    model_dir = dir;
    prompt = oracle_load(dir);
    if (!prompt || !sized_model_open(&model, dir)) {
        RUN_NAMED(dir, CHECK_NEVER("does not open"));
        return;
    }
    for (int i = 0; i < 3; i++) {
        bool few = i > 0 && !ref;
        snprintf(name, sizeof name, "%s %s sum of all allocations, %s", device, tail,
                 kinds[i].text);
        RUN_NAMED(name, wrapped_sum(kinds[i].memory, kinds[i].no_import, few));
        snprintf(name, sizeof name, "%s %s refusals, %s", device, tail, kinds[i].text);
        if (!few)
            RUN_NAMED(name, refusals_name_the_number(kinds[i].memory, kinds[i].no_import));
    }
    snprintf(name, sizeof name, "%s %s high-water mark", device, tail);
    if (demo)
        RUN_NAMED(name, high_water());
    sized_model_close(&model);
    oracle_free(prompt);
}

int main(int argc, char **argv)
{
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
    if (argc == 6 && strcmp(argv[1], "--child") == 0) {
        model_dir = DEMO;
        prompt = oracle_load(DEMO);
        return prompt ? child_main(argv + 2) : 1;
    }
    devices d = {.only = devices_only(argc, argv)};
    while (devices_next(&d)) {
        device = d.name;
        model_run(DEMO, d.ref, true);
        if (d.ref)
            model_run("tests/fixtures/models/longcat_ngram", d.ref, false);
        if (d.ref) /* outer scales of weights and records, six extents to a record */
            model_run("tests/fixtures/models/deepseek_v3_fp8", d.ref, false);
    }
    return check_done();
}
