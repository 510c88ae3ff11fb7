/* `mkmodel` and `verify`: checkpoints written and checked. Catches: bytes that are not what seed
 * and name say, a run that depends on where in a file tensors lie, an interrupted, killed or failed
 * process that leaves something which opens, damage that is not found or not named.
 *
 * Runs the built binary (support/cli.h) on what it has written. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/safetensors.h"
#include "storage/safetensors_write.h"
#include "tests/check.h"
#include "tests/support/cli.h"

static tmp_dir dir;

/* ---- verify ---- */

static void file_patch(const char *path, off_t at, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY);
    if (pwrite(fd, data, bytes, at) != (ssize_t)bytes)
        printf("    cannot patch %s\n", path);
    close(fd);
}

/* Where a tensor's data lies in a safetensors file, or -1. */
static off_t tensor_at(const char *path, const char *name)
{
    static char header[1 << 20];
    uint64_t n = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    size_t got = fread(&n, 8, 1, f) == 1 && n < sizeof header ? fread(header, 1, n, f) : 0;
    fclose(f);
    header[got] = 0;
    json_t *v = cli_json(header);
    json_t *offsets = json_object_get(json_object_get(v, name), "data_offsets");
    off_t at =
        offsets ? (off_t)(8 + n) + (off_t)json_integer_value(json_array_get(offsets, 0)) : -1;
    json_decref(v);
    return at;
}

static void verify_finds_defects(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    cli(&r, "verify %s/tiny", dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "no defect found");
    CHECK_HAS(r.out, "checksums");
    cli(&r, "verify %s/tiny --json", dir.path);
    json_t *v = cli_json(r.out);
    CHECK(json_is_true(json_object_get(v, "ok")));
    json_decref(v);

    cli(&r, "mkmodel %s/hurt --copy %s/tiny", dir.path, dir.path);
    REQUIRE(r.code == 0);
    const char *path = tmp_path(&dir, "hurt/model.safetensors");
    static const char name[] = "model.layers.1.mlp.router.classifier.weight";
    off_t at = tensor_at(path, name);
    REQUIRE(at > 0);
    file_patch(path, at + 4 * 130, "\x00\x00\xc0\x7f", 4);
    cli(&r, "verify %s/hurt", dir.path);
    cli_failed_with(&r, "element 130 of model.layers.1.mlp.router.classifier.weight is not a "
                          "number");
    struct stat st;
    CHECK(stat(path, &st) == 0 && truncate(path, st.st_size - 1) == 0);
    cli(&r, "verify %s/hurt", dir.path);
    cli_failed_with(&r, "model.safetensors");
}

/* A fixture whose second layer's router is stored in 8 bits, with outer scales of this format. */
static void scaled_router_make(cf_format format, const void *scales)
{
    static const char from[] = "tests/fixtures/models/deepseek_v3_fp8";
    static const char router[] = "model.layers.1.mlp.gate.weight";
    static cf_tensor_spec specs[1000];
    cf_catalogue *cat = NULL;
    cf_safetensors_writer *w = NULL;
    cf_err err = {0};
    must(cf_safetensors_open(from, &cat, &err) == 0);
    uint32_t n = cf_catalogue_count(cat);
    must(n + 1 < sizeof specs / sizeof *specs);
    for (uint32_t i = 0; i < n; i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        bool it = strcmp(t->name, router) == 0;
        specs[i] = (cf_tensor_spec){
            .name = t->name, .format = it ? CF_F8_E4M3 : t->format, .n_dims = t->n_dims};
        memcpy(specs[i].shape, t->shape, sizeof t->shape);
    }
    specs[n] = (cf_tensor_spec){.name = "model.layers.1.mlp.gate.weight_scale_inv",
                                .format = format,
                                .n_dims = 2,
                                .shape = {1, 2}};
    must(cf_safetensors_create(&w, tmp_path(&dir, "scaled/model.safetensors"), specs, n + 1,
                               CF_DATA_ALIGNED_8, &err) == 0);
    for (uint32_t i = 0; i <= n; i++) {
        uint64_t bytes = 0;
        must(cf_tensor_spec_bytes(&specs[i], &bytes));
        uint8_t *data = malloc(bytes);
        must(data != NULL);
        memset(data, 0x38, bytes); /* ones, of a router */
        if (i == n) {
            memcpy(data, scales, bytes);
        } else if (strcmp(specs[i].name, router) != 0) {
            const cf_extent *x = &cf_catalogue_at(cat, i)->extent;
            int fd = open(cf_catalogue_path(cat, x->file), O_RDONLY);
            must(pread(fd, data, bytes, (off_t)x->off) == (ssize_t)bytes);
            close(fd);
        }
        must(cf_safetensors_append(w, data, bytes, &err) == 0);
        free(data);
    }
    must(cf_safetensors_commit(&w, &err) == 0);
    cf_catalogue_close(&cat);
}

/* Values that are finite are none where their outer scales are not. */
static void verify_looks_at_outer_scales(void)
{
    static const struct {
        cf_format format;
        const void *right, *wrong;
        const char *says;
    } table[] = {
        {CF_F32, "\0\0\x80\x3f\0\0\0\x3f", "\0\0\x80\x3f\0\0\x80\x7f", "is infinite"},
        {CF_BF16, "\x80\x3f\x00\x3f", "\x80\x3f\xc0\x7f", "is not a number"},
        {CF_F8_E8M0, "\x7f\x7e", "\x7f\xff", "is not a number"},
    };
    char says[200];
    cli_result r;
    json_t *config = json_load_file("tests/fixtures/models/deepseek_v3_fp8/config.json", 0, NULL);
    tmp_write(tmp_path(&dir, "few"), "1 2 3", 5);
    mkdir(tmp_path(&dir, "scaled"), 0700);
    must(config && json_dump_file(config, tmp_path(&dir, "scaled/config.json"), 0) == 0);
    json_decref(config);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        scaled_router_make(table[i].format, table[i].right);
        cli(&r, "verify %s/scaled", dir.path);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.err, "");
        scaled_router_make(table[i].format, table[i].wrong);
        cli(&r, "verify %s/scaled", dir.path);
        snprintf(says, sizeof says, "outer scale 1 of model.layers.1.mlp.gate.weight %s",
                 table[i].says);
        cli_failed_with(&r, says);
        cli(&r, "run %s/scaled --ids %s/few --print-ids --device ref", dir.path, dir.path);
        cli_failed_with(&r, "model.layers.1.mlp.gate.weight: outer scale 1 is not a finite number");
    }
}

/* ---- mkmodel ---- */

static void bytes_are_a_function_of_the_seed(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    cli_result r;
    cli(&r, "mkmodel %s/again %s", dir.path, cli_tiny);
    CHECK_INT(r.code, 0);
    CHECK(tmp_files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                          tmp_path(&dir, "again/model.safetensors")));
    cli(&r, "mkmodel %s/other %s --seed 1", dir.path, cli_tiny);
    CHECK(!tmp_files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                           tmp_path(&dir, "other/model.safetensors")));
    /* Shards and offsets move bytes and change none: copied back together they are the same. */
    cli(&r, "mkmodel %s/shards %s --shard-size 300K --data-offset 5", dir.path, cli_tiny);
    CHECK_INT(r.code, 0);
    CHECK(cli_exists("shards/model.safetensors.index.json"));
    cli(&r, "mkmodel %s/joined --copy %s/shards --shard-size 1G", dir.path, dir.path);
    CHECK_INT(r.code, 0);
    CHECK(tmp_files_equal(tmp_path(&dir, "tiny/model.safetensors"),
                          tmp_path(&dir, "joined/model.safetensors")));
    cli(&r, "mkmodel %s/tiny %s", dir.path, cli_tiny);
    cli_failed_with(&r, "exists");
    cli(&r, "mkmodel %s/none --shape longcat-flash --size-only", dir.path);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "1121594245120 bytes");
    CHECK(!cli_exists("none"));
}

static void data_offsets_do_not_matter(void)
{
    if (!cli_models_made())
        SKIP("no model could be written");
    static const int offsets[] = {0, 1, 2, 4, 8, 14};
    cli_result first, r;
    cli(&first, "run %s/tiny --ids %s/ids --print-ids -n 12 --device ref -q", dir.path, dir.path);
    CHECK_INT(first.code, 0);
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "at%d", offsets[i]);
        cli(&r, "mkmodel %s/%s --copy %s/tiny --data-offset %d", dir.path, name, dir.path,
            offsets[i]);
        CHECK_INT(r.code, 0);
        snprintf(name, sizeof name, "at%d/model.safetensors", offsets[i]);
        off_t at = tensor_at(tmp_path(&dir, name), "model.embed_tokens.weight");
        CHECK(at > 0);
        cli(&r, "run %s/at%d --ids %s/ids --print-ids -n 12 --device ref -q", dir.path, offsets[i],
            dir.path);
        CHECK_INT(r.code, 0);
        CHECK_STR(r.out, first.out);
        uint64_t header = 0;
        FILE *f = fopen(tmp_path(&dir, name), "rb");
        CHECK(f && fread(&header, 8, 1, f) == 1);
        if (f)
            fclose(f);
        CHECK_INT((8 + header) % 16, offsets[i]);
        CHECK_INT((8 + header) % 32, offsets[i] + 16);
    }
}

static void a_full_drive_leaves_nothing(void)
{
    cli_result r;
    char line[1200];
    snprintf(line, sizeof line, "mkmodel %s/full --shape longcat-flash-tiny", dir.path);
    cli_limited(&r, 1 << 20, line);
    cli_failed_with(&r, "failed after");
    CHECK(!cli_exists("full") && !cli_exists("full.partial"));
}

/* Big enough to be caught in the act on any machine. */
static const char slow[] = "--shape longcat-flash-lite --layers 1 --ngram-ratio 0.5 --shard-size "
                           "200M";

static pid_t mkmodel_caught(const char *out)
{
    char line[1200], partial[64];
    int null = open("/dev/null", O_WRONLY);
    snprintf(line, sizeof line, "mkmodel %s/%s %s", dir.path, out, slow);
    snprintf(partial, sizeof partial, "%s.partial/model-00001-of-00030.safetensors.part", out);
    pid_t pid = cli_start(line, null, null, 0);
    close(null);
    snprintf(partial, sizeof partial, "%s.partial", out);
    for (int i = 0; i < 5000 && !cli_exists(partial); i++)
        usleep(1000);
    usleep(50000);
    return pid;
}

static void killed_or_interrupted_leaves_no_model(void)
{
    cli_result r;
    pid_t pid = mkmodel_caught("caught");
    kill(pid, SIGINT);
    CHECK_INT(cli_wait(pid), 130);
    CHECK(!cli_exists("caught") && !cli_exists("caught.partial"));

    pid = mkmodel_caught("caught");
    kill(pid, SIGKILL);
    CHECK_INT(cli_wait(pid), -SIGKILL);
    CHECK(!cli_exists("caught"));
    CHECK(cli_exists("caught.partial"));
    cli(&r, "info %s/caught.partial", dir.path);
    CHECK_INT(r.code, 1);
    /* The next run takes its place. */
    cli(&r, "mkmodel %s/caught %s", dir.path, cli_tiny);
    CHECK_INT(r.code, 0);
    CHECK(cli_exists("caught/config.json") && !cli_exists("caught.partial"));
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    RUN(verify_finds_defects);
    RUN(verify_looks_at_outer_scales);
    RUN(bytes_are_a_function_of_the_seed);
    RUN(data_offsets_do_not_matter);
    RUN(a_full_drive_leaves_nothing);
    RUN(killed_or_interrupted_leaves_no_model);
    tmp_dir_finish(&dir);
    return check_done();
}
