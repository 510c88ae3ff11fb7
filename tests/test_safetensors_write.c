/* Writing safetensors. Catches: a header that the reader (ours, strict) refuses, names or shapes
 * that change on the way, data that starts elsewhere than promised, a file that appears although
 * it is not complete, and shards cut at the wrong tensor. */
#include "tests/check.h"

#include <sys/stat.h>
#include <unistd.h>

#include "storage/safetensors.h"
#include "storage/safetensors_write.h"
#include "tests/support/tmpfiles.h"

static tmp_dir dir;

static bool exists(const char *name)
{
    struct stat st;
    return stat(tmp_path(&dir, name), &st) == 0;
}

static const cf_tensor_spec list[] = {
    {.name = "a \"quoted\\ name \xc3\xa9", .format = CF_BF16, .n_dims = 2, .shape = {3, 5}},
    {.name = "scalar", .format = CF_F32, .n_dims = 0},
    {.name = "odd", .format = CF_U8, .n_dims = 1, .shape = {7}},
    {.name = "wide", .format = CF_F64, .n_dims = 3, .shape = {2, 1, 4}},
};
enum { N = sizeof list / sizeof list[0], BYTES = 30 + 4 + 7 + 64 };

static uint8_t byte_at(unsigned i)
{
    return (uint8_t)(i * 37 + 11);
}

static int write_all(int data_offset, cf_err *err)
{
    uint8_t data[BYTES];
    cf_safetensors_writer *w = NULL;
    for (unsigned i = 0; i < BYTES; i++)
        data[i] = byte_at(i);
    int rc =
        cf_safetensors_create(&w, tmp_path(&dir, "model.safetensors"), list, N, data_offset, err);
    if (rc == 0) /* cut anywhere: the writer does not care for tensors */
        rc = cf_safetensors_append(w, data, 33, err);
    if (rc == 0)
        rc = cf_safetensors_append(w, data + 33, BYTES - 33, err);
    if (rc == 0)
        rc = cf_safetensors_commit(&w, err);
    cf_safetensors_abandon(&w);
    return rc;
}

static void what_is_written_is_read(void)
{
    for (int offset = CF_DATA_ALIGNED_8; offset < 16; offset++) {
        cf_err err = {0};
        cf_catalogue *cat = NULL;
        REQUIRE(write_all(offset, &err) == 0);
        CHECK(!exists("model.safetensors.part"));
        int rc = cf_safetensors_open(dir.path, &cat, &err);
        if (rc < 0)
            printf("    %s\n", err.msg);
        REQUIRE(rc == 0);
        CHECK_INT(cf_catalogue_count(cat), N);
        FILE *f = fopen(cf_catalogue_path(cat, 0), "rb");
        REQUIRE(f != NULL);
        uint64_t first = 0;
        unsigned at = 0;
        for (int i = 0; i < N; i++) {
            int64_t index = cf_catalogue_find(cat, list[i].name);
            REQUIRE(index >= 0);
            const cf_tensor *t = cf_catalogue_at(cat, (uint32_t)index);
            CHECK_INT(t->format, list[i].format);
            CHECK_INT(t->n_dims, list[i].n_dims);
            CHECK(memcmp(t->shape, list[i].shape, t->n_dims * sizeof *t->shape) == 0);
            first = i ? first : t->extent.off;
            fseek(f, (long)t->extent.off, SEEK_SET);
            for (uint64_t b = 0; b < t->extent.bytes; b++)
                CHECK_INT(fgetc(f), byte_at(at++));
        }
        CHECK_INT(at, BYTES);
        CHECK_INT(fgetc(f), EOF);
        fclose(f);
        if (offset == CF_DATA_ALIGNED_8)
            CHECK_INT(first % 8, 0);
        else
            CHECK_INT(first % 32, offset + 16);
        cf_catalogue_close(&cat);
        unlink(tmp_path(&dir, "model.safetensors"));
    }
}

static void nothing_appears_before_it_is_complete(void)
{
    cf_err err = {0};
    cf_safetensors_writer *w = NULL;
    const char *path = tmp_path(&dir, "part.safetensors");
    uint8_t data[BYTES + 1] = {0};
    REQUIRE(cf_safetensors_create(&w, path, list, N, 0, &err) == 0);
    CHECK(exists("part.safetensors.part") && !exists("part.safetensors"));
    CHECK_INT(cf_safetensors_append(w, data, BYTES - 1, &err), 0);
    CHECK_INT(cf_safetensors_commit(&w, &err), -EINVAL);
    CHECK_HAS(err.msg, "1 of 105 data bytes are missing");
    CHECK(w == NULL && !exists("part.safetensors.part") && !exists("part.safetensors"));

    err = (cf_err){0};
    path = tmp_path(&dir, "part.safetensors");
    REQUIRE(cf_safetensors_create(&w, path, list, N, 0, &err) == 0);
    CHECK_INT(cf_safetensors_append(w, data, BYTES + 1, &err), -EINVAL);
    CHECK_HAS(err.msg, "1 bytes too many");
    cf_safetensors_abandon(&w);
    CHECK(w == NULL && !exists("part.safetensors.part"));
    cf_safetensors_abandon(&w);
}

static void what_cannot_be_written_is_refused(void)
{
    cf_err err = {0};
    cf_safetensors_writer *w = NULL;
    cf_tensor_spec huge = {
        .name = "huge", .format = CF_F32, .n_dims = 2, .shape = {UINT64_MAX / 2, 3}};
    CHECK_INT(cf_safetensors_create(&w, tmp_path(&dir, "x"), &huge, 1, 0, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "huge");
    err = (cf_err){0};
    CHECK_INT(cf_safetensors_create(&w, tmp_path(&dir, "no/x"), list, N, 0, &err), -ENOENT);
    CHECK_HAS(err.msg, "no/x");
    CHECK(w == NULL && !exists("x") && !exists("x.part"));
    err = (cf_err){0};
    CHECK_INT(cf_file_write_whole(tmp_path(&dir, "no/y"), "a", 1, &err), -ENOENT);
    CHECK_INT(cf_file_write_whole(tmp_path(&dir, "y"), "abc", 3, NULL), 0);
    CHECK(exists("y") && !exists("y.part"));
}

static void shards_hold_what_fits(void)
{
    /* 30, 4, 7 and 64 bytes. */
    static const struct {
        uint64_t limit;
        uint32_t n, of[N];
    } cases[] = {
        {1000, 1, {0, 0, 0, 0}}, {105, 1, {0, 0, 0, 0}}, {104, 2, {0, 0, 0, 1}},
        {40, 3, {0, 0, 1, 2}},   {34, 3, {0, 0, 1, 2}},  {33, 3, {0, 1, 1, 2}},
        {1, 4, {0, 1, 2, 3}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        uint32_t of[N];
        CHECK_INT(cf_safetensors_shard(list, N, cases[c].limit, of), cases[c].n);
        for (int i = 0; i < N; i++)
            CHECK_INT(of[i], cases[c].of[i]);
    }
    char name[64];
    cf_safetensors_shard_name(0, 1, name, sizeof name);
    CHECK_STR(name, "model.safetensors");
    cf_safetensors_shard_name(2, 12, name, sizeof name);
    CHECK_STR(name, "model-00003-of-00012.safetensors");
}

int main(void)
{
    tmp_dir_init(&dir);
    RUN(what_is_written_is_read);
    RUN(nothing_appears_before_it_is_complete);
    RUN(what_cannot_be_written_is_refused);
    RUN(shards_hold_what_fits);
    tmp_dir_finish(&dir);
    return check_done();
}
