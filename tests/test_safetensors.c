/* Catches: a malformed or hostile checkpoint that is accepted, crashes the reader or is refused
 * without saying which file, tensor and number; and a good one that is read wrongly. */
#include "storage/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include "storage/catalogue_build.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

#define INDEX "model.safetensors.index.json"

/* One header text of a file with 1000 data bytes, and what must be in the sentence. */
struct bad_case {
    const char *name, *json, *want[3];
};

#define T(body) "{\"x.weight\":{" body "}}"
static const struct bad_case bad_cases[] = {
    {"empty", "", {"f.st", "not JSON"}},
    {"not_json", "{\"a\":", {"f.st", "not JSON", "byte 5"}},
    {"trailing_text", "{} x", {"f.st", "not JSON", "end of file"}},
    {"trailing_object", "{}{}", {"f.st", "not JSON"}},
    {"a_list", "[1, 2]", {"f.st", "list, not an object"}},
    {"not_utf8", "{\"\xff\":1}", {"f.st", "not JSON", "byte 0xff"}},
    {"nul_in_name", "{\"a\\u0000b\":1}", {"f.st", "not JSON"}},
    {"nested_deep", "{\"a\":{\"b\":[[[[[[1]]]]]]}}", {"f.st", "nested deeper than 3", "byte 11"}},
    {"tensor_not_object", "{\"x.weight\":7}", {"f.st", "x.weight", "not described by an object"}},
    {"no_dtype", T("\"shape\":[1],\"data_offsets\":[0,1]"), {"f.st", "x.weight", "no dtype"}},
    {"dtype_number",
     T("\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]"),
     {"f.st", "x.weight", "no dtype"}},
    {"dtype_unknown",
     T("\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]"),
     {"f.st", "x.weight", "unknown dtype \"F4\""}},
    {"no_shape", T("\"dtype\":\"F32\",\"data_offsets\":[0,4]"), {"f.st", "x.weight", "no shape"}},
    {"shape_not_list",
     T("\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,4]"),
     {"f.st", "x.weight", "no shape"}},
    {"shape_fraction",
     T("\"dtype\":\"U8\",\"shape\":[2,1.5],\"data_offsets\":[0,3]"),
     {"f.st", "x.weight", "shape[1] is not an integer"}},
    {"shape_negative",
     T("\"dtype\":\"U8\",\"shape\":[-1,-4],\"data_offsets\":[0,4]"),
     {"f.st", "x.weight", "shape[0] is negative: -1"}},
    {"shape_beyond_64_bits",
     T("\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]"),
     {"f.st", "not JSON", "too big"}},
    {"shape_overflow",
     T("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]"),
     {"f.st", "x.weight", "[4294967296, 4294967296] of F32 overflows"}},
    {"element_overflow",
     T("\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]"),
     {"f.st", "x.weight", "overflows"}},
    {"nine_dims",
     T("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]"),
     {"f.st", "x.weight", "9 dimensions, at most 8"}},
    {"no_offsets", T("\"dtype\":\"U8\",\"shape\":[1]"), {"f.st", "x.weight", "no data_offsets"}},
    {"three_offsets",
     T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]"),
     {"f.st", "x.weight", "list of 2 numbers"}},
    {"offset_string",
     T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]"),
     {"f.st", "x.weight", "data_offsets[1] is not an integer"}},
    {"offset_negative",
     T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]"),
     {"f.st", "x.weight", "data_offsets[0] is negative: -1"}},
    {"offsets_reversed",
     T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,8]"),
     {"f.st", "x.weight", "end at 8, before their begin 9"}},
    {"beyond_the_file",
     T("\"dtype\":\"U8\",\"shape\":[1001],\"data_offsets\":[0,1001]"),
     {"f.st", "x.weight", "ends at data byte 1001, the file has 1000"}},
    {"far_beyond_the_file",
     T("\"dtype\":\"U8\",\"shape\":[1],"
       "\"data_offsets\":[9223372036854775806,9223372036854775807]"),
     {"f.st", "x.weight", "9223372036854775807"}},
    {"size_mismatch",
     T("\"dtype\":\"BF16\",\"shape\":[3,5],\"data_offsets\":[0,31]"),
     {"x.weight", "[3, 5] of BF16 takes 30 bytes", "span 31"}},
    {"scalar_mismatch",
     T("\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,8]"),
     {"x.weight", "[] of F32 takes 4 bytes", "span 8"}},
    {"name_twice",
     "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     {"f.st", "duplicate", "x"}},
    {"overlap",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[20,29]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[11],\"data_offsets\":[10,21]}}",
     {"f.st", "\"a\" and \"b\" overlap", "bytes 110 to 121 and from 120"}},
    {"same_place",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}",
     {"f.st", "overlap", "from 100"}},
    {"empty_name",
     "{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     {"f.st", "without a name"}},
    {"control_name",
     "{\"a\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     {"f.st", "\"a?[2J\"", "control byte 0x1b"}},
};

static void bad_check(const struct bad_case *c)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    int rc = cf_safetensors_parse(&cat, 0, "dir/f.st", c->json, strlen(c->json), 100, 1100, &err);
    CHECK(rc == CF_EFORMAT && err.code == CF_EFORMAT && !cat);
    for (int i = 0; i < 3; i++)
        if (c->want[i])
            CHECK_HAS(err.msg, c->want[i]);
    CHECK(!strchr(err.msg, '\x1b'));
    cf_catalogue_close(&cat);
}

static void headers_malformed(void)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof *bad_cases; i++) {
        bool before = check_case_failed;
        bad_check(&bad_cases[i]);
        if (check_case_failed != before)
            printf("    in %s\n", bad_cases[i].name);
    }
}

static void header_good(void)
{
    static const char json[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[3,5],\"data_offsets\":[4,34]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"extra\":null},"
        "\"none\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904,0,9],\"data_offsets\":[9,9]},"
        "\"last\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,1,1,1,1,1,1,966],\"data_offsets\":[34,1000]}}"
        "    ";
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    char text[64], tiny[6];
    CHECK_INT(cf_safetensors_parse(&cat, 0, "f.st", json, strlen(json), 100, 1100, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat);
    CHECK_INT(cf_catalogue_count(cat), 4);
    CHECK_INT(cf_catalogue_find(cat, "__metadata__"), -1);
    int64_t i = cf_catalogue_find(cat, "b");
    REQUIRE(i == 0); /* file order is kept */
    const cf_tensor *t = cf_catalogue_at(cat, 0);
    CHECK_STR(t->name, "b");
    CHECK_STR(cf_format_name(t->format), "BF16");
    CHECK_STR(cf_tensor_shape_text(t, text, sizeof text), "[3, 5]");
    CHECK_STR(cf_tensor_shape_text(t, tiny, sizeof tiny), "[3, 5");
    CHECK(t->extent.off == 104 && t->extent.bytes == 30 && t->extent.file == 0);
    CHECK_INT(cf_catalogue_find(cat, "c"), -1);
    CHECK_INT(cf_catalogue_file_bytes(cat, 0), 1100);
    CHECK_STR(cf_catalogue_path(cat, 0), "f.st");
    CHECK_INT(cf_catalogue_at(cat, 2)->extent.bytes, 0);
    CHECK(cf_catalogue_memory(cat) > 0);
    /* A second file in the same catalogue may not repeat a name of the first. */
    static const char again[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    CHECK_INT(cf_safetensors_parse(&cat, 1, "g.st", again, strlen(again), 8, 99, &err), CF_EFORMAT);
    CHECK_STR(err.msg, "tensor \"a\" is both in f.st and in g.st");
    cf_catalogue_close(&cat);
    CHECK(!cat);
    cf_catalogue_close(&cat);
}

static void elements(void)
{
    for (int i = 0; i < CF_FORMAT_COUNT; i++) {
        uint32_t bytes = cf_formats[i].block_bytes;
        bool element = cf_formats[i].block_values == 1; /* the others exist in GGUF only */
        char json[200];
        snprintf(json, sizeof json,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%u]}}",
                 cf_format_name((cf_format)i), 3 * bytes);
        cf_catalogue *cat = NULL;
        int rc = cf_safetensors_parse(&cat, 0, "f", json, strlen(json), 8, 999, NULL);
        CHECK_INT(rc, element ? 0 : CF_EFORMAT);
        if (!element)
            continue;
        REQUIRE(cat);
        CHECK_INT(cf_catalogue_at(cat, 0)->format, i);
        cf_catalogue_close(&cat);
    }
}

/* Many tensors: the table grows, every name is found, and bounds on their number hold. */
static void many_tensors(void)
{
    enum { N = 20000 };
    size_t size = (size_t)N * 80, used = 0;
    char *json = malloc(size), name[32];
    for (int i = 0; i < N; i++)
        used += (size_t)snprintf(json + used, size - used,
                                 "%c\"t.%d\":{\"dtype\":\"U8\",\"shape\":[2],"
                                 "\"data_offsets\":[%d,%d]}",
                                 i ? ',' : '{', i, 2 * (N - i), 2 * (N - i) + 2);
    json[used++] = '}';
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    CHECK_INT(cf_safetensors_parse(&cat, 0, "f", json, used, 8, 1 << 20, &err), 0);
    CHECK_STR(err.msg, "");
    free(json);
    REQUIRE(cat);
    CHECK_INT(cf_catalogue_count(cat), N);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "t.%d", i);
        CHECK_INT(cf_catalogue_find(cat, name), i);
        CHECK_STR(cf_catalogue_at(cat, (uint32_t)i)->name, name);
    }
    cf_catalogue_close(&cat);
}

/* More JSON values than any header needs are refused before a tree is built of them; more
 * tensors than allowed, after. */
static void too_many_values(void)
{
    size_t n = (size_t)17 << 20;
    char *json = malloc(n);
    memset(json, ',', n);
    memcpy(json, "{\"x\":[1", 7);
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    CHECK_INT(cf_safetensors_parse(&cat, 0, "f.st", json, n, 8, 9, &err), CF_EFORMAT);
    CHECK_STR(err.msg, "f.st: JSON of more than 16777216 values");
    size_t used = 0;
    for (int i = 0; i <= 1 << 20; i++)
        used += (size_t)snprintf(json + used, n - used, "%c\"%d\":1", i ? ',' : '{', i);
    json[used++] = '}';
    err = (cf_err){0};
    CHECK_INT(cf_safetensors_parse(&cat, 0, "f.st", json, used, 8, 9, &err), CF_EFORMAT);
    CHECK_STR(err.msg, "f.st: 1048577 tensors, at most 1048576 are allowed");
    CHECK(!cat);
    free(json);
}

static void long_name(void)
{
    char json[CF_MAX_NAME_BYTES + 100];
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    for (int extra = 0; extra < 2; extra++) {
        snprintf(json, sizeof json,
                 "{\"%0*d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                 CF_MAX_NAME_BYTES + extra, 7);
        int rc = cf_safetensors_parse(&cat, 0, "f.st", json, strlen(json), 8, 9, &err);
        CHECK_INT(rc, extra ? CF_EFORMAT : 0);
        cf_catalogue_close(&cat);
    }
    CHECK_STR(err.msg, "f.st: a tensor name of 1025 bytes, at most 1024 are allowed");
}

/* ---- directories ---- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[10],\"data_offsets\":[0,10]}}"

static void text_write(const char *path, const char *text)
{
    tmp_write(path, text, strlen(text));
}

/* Opens and expects a sentence with both parts. */
static void open_bad(const tmp_dir *d, const char *part, const char *also)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    CHECK(cf_safetensors_open(d->path, &cat, &err) < 0 && !cat);
    CHECK_HAS(err.msg, part);
    CHECK_HAS(err.msg, also);
    cf_catalogue_close(&cat);
}

static void open_good(const tmp_dir *d, uint32_t files, uint32_t tensors)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    CHECK_INT(cf_safetensors_open(d->path, &cat, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat);
    CHECK_INT(cf_catalogue_file_count(cat), files);
    CHECK_INT(cf_catalogue_count(cat), tensors);
    cf_catalogue_close(&cat);
}

static void single_file(void)
{
    tmp_dir d;
    tmp_dir_init(&d);
    open_bad(&d, "holds no *.safetensors file", d.path);
    tmp_write_safetensors(tmp_path(&d, "b.safetensors"), ONE("x"), 10);
    open_good(&d, 1, 1);
    tmp_write_safetensors(tmp_path(&d, "a.safetensors"), ONE("y"), 10);
    open_bad(&d, "holds 2 *.safetensors files (a.safetensors, ...)", INDEX);
    tmp_write_safetensors(tmp_path(&d, "model.safetensors"), ONE("z"), 10);
    open_good(&d, 1, 1);
    tmp_dir_finish(&d);
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    CHECK_INT(cf_safetensors_open(d.path, &cat, &err), -ENOENT);
    CHECK_HAS(err.msg, "No such file");
}

static void header_length_bad(void)
{
    tmp_dir d;
    tmp_dir_init(&d);
    const char *path = tmp_path(&d, "model.safetensors");
    tmp_write(path, "1234567", 7);
    open_bad(&d, "model.safetensors: 7 bytes", "too few");
    tmp_write(path, "\x03\0\0\0\0\0\0\0{}", 10);
    open_bad(&d, "header length 3, but 2 bytes follow", "model.safetensors");
    tmp_write(path, "\x01\xe1\xf5\x05\0\0\0\0{}", 10);
    open_bad(&d, "header length 100000001, at most 100000000", "model.safetensors");
    tmp_write(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    open_bad(&d, "header length 18446744073709551615", "model.safetensors");
    tmp_write(path, "\0\0\0\0\0\0\0\0{}", 10);
    open_bad(&d, "not JSON", "model.safetensors");
    tmp_write(path, "\x02\0\0\0\0\0\0\0{}", 10);
    open_good(&d, 1, 0);
    tmp_write_safetensors(path, ONE("x"), 9); /* truncated shard */
    open_bad(&d, "\"x\" ends at data byte 10, the file has 9", "truncated?");
    unlink(path);
    CHECK_INT(mkfifo(path, 0600), 0); /* must not hang */
    open_bad(&d, "model.safetensors", "not a regular file");
    tmp_dir_finish(&d);
}

static void index_good(void)
{
    tmp_dir d;
    tmp_dir_init(&d);
    tmp_write_safetensors(tmp_path(&d, "m-2.safetensors"), ONE("a"), 10);
    tmp_write_safetensors(tmp_path(&d, "m-1.safetensors"), ONE("b"), 10);
    text_write(tmp_path(&d, INDEX),
               "{\"metadata\":{\"deep\":[[[[1]]]]},\"weight_map\":{\"a\":\"m-2.safetensors\","
               "\"b\":\"m-1.safetensors\"}}");
    cf_catalogue *cat = NULL;
    cf_err err = {0};
    CHECK_INT(cf_safetensors_open(d.path, &cat, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat);
    CHECK_HAS(cf_catalogue_path(cat, 0), "/m-1.safetensors"); /* sorted, not as listed */
    CHECK_HAS(cf_catalogue_path(cat, 1), "/m-2.safetensors");
    CHECK_INT(cf_catalogue_at(cat, (uint32_t)cf_catalogue_find(cat, "a"))->extent.file, 1);
    cf_catalogue_close(&cat);
    tmp_dir_finish(&d);
}

static void index_bad(void)
{
    static const struct {
        const char *json, *part, *also;
    } cases[] = {
        {"", "the index is not JSON", INDEX},
        {"[]", "not an object", INDEX},
        {"{}", "no weight_map", INDEX},
        {"{\"weight_map\":{}}", "no weight_map, or not an object with entries", INDEX},
        {"{\"weight_map\":[\"a\"]}", "no weight_map", INDEX},
        {"{\"weight_map\":{\"a\":3}}", "\"a\"", "not a plain file name"},
        {"{\"weight_map\":{\"a\":\"\"}}", "\"a\"", "not a plain file name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "\"..\"", "not a plain file name"},
        {"{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", "\"../m-1.safetensors\"", "plain"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "\"/etc/passwd\"", "not a plain file name"},
        {"{\"weight_map\":{\"a\":\"none.safetensors\"}}", "cannot open", "none.safetensors"},
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\",\"a\":\"m-1.safetensors\"}}", "duplicate",
         "a"},
        {"{\"weight_map\":{\"gone\":\"m-1.safetensors\"}}",
         "\"gone\" is said to be in m-1.safetensors, which lacks it", INDEX},
        {"{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}",
         "\"a\" is said to be in m-2.safetensors, but is in m-1.safetensors", INDEX},
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-3.safetensors\"}}",
         "tensor \"a\" is both in", "m-3.safetensors"},
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\"},\"x\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}",
         "nested deeper than 16", INDEX},
    };
    tmp_dir d;
    tmp_dir_init(&d);
    tmp_write_safetensors(tmp_path(&d, "m-1.safetensors"), ONE("a"), 10);
    tmp_write_safetensors(tmp_path(&d, "m-2.safetensors"), ONE("b"), 10);
    tmp_write_safetensors(tmp_path(&d, "m-3.safetensors"), ONE("a"), 10);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_write(tmp_path(&d, INDEX), cases[i].json);
        open_bad(&d, cases[i].part, cases[i].also);
    }
    tmp_dir_finish(&d);
}

int main(void)
{
    RUN(header_good);
    RUN(headers_malformed);
    RUN(elements);
    RUN(many_tensors);
    RUN(too_many_values);
    RUN(long_name);
    RUN(single_file);
    RUN(header_length_bad);
    RUN(index_good);
    RUN(index_bad);
    return check_done();
}
