/* Catches: a malformed or hostile GGUF file that is accepted, crashes the reader or is refused
 * without saying which file, key, tensor and number; and a good one that is read wrongly. */
#include "storage/gguf.h"

#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/catalogue_build.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

#define FIXTURES "../shared/fixtures/gguf/"

/* Pieces of files as literals: counts and lengths below 256 are one octal escape. */
#define Z3            "\0\0\0"
#define Z7            "\0\0\0\0\0\0\0"
#define HEAD(t, k)    "GGUF\3" Z3 t Z7 k Z7
#define TEXT(n, s)    n Z7 s
#define KEY(n, s, ty) TEXT(n, s) ty Z3
#define ALL_ONES      "\377\377\377\377\377\377\377\377"
/* A tensor "x.w" of two dimensions. */
#define INFO(ne0, ne1, type, off) TEXT("\3", "x.w") "\2" Z3 ne0 Z7 ne1 Z7 type Z3 off Z7

struct bad_case {
    const char *name, *bytes;
    size_t size;
    const char *want[2];
};
#define BAD(name, bytes, ...)                                                                      \
    {                                                                                              \
        name, bytes, sizeof(bytes) - 1,                                                            \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

/* clang-format off */
static const struct bad_case bad_cases[] = {
    BAD("empty", "", "ends at byte 0 inside the header", "truncated?"),
    BAD("magic", "GGML\3" Z3, "does not begin with \"GGUF\""),
    BAD("magic_only", "GGUF", "ends at byte 4 inside the header"),
    BAD("version_1", "GGUF\1" Z3, "GGUF version 1; 2 and 3 are read"),
    BAD("version_4", "GGUF\4" Z3, "GGUF version 4"),
    BAD("big_endian", "GGUF" Z3 "\3", "big-endian"),
    BAD("no_counts", "GGUF\3" Z3, "ends at byte 8 inside the header"),
    BAD("tensors_many", "GGUF\3" Z3 ALL_ONES "\0" Z7, "18446744073709551615 tensors",
        "at most 1048576 are allowed"),
    BAD("keys_many", "GGUF\3" Z3 "\0" Z7 "\0\0\1\1\0\0\0\0", "16842752 keys, at most 65536"),
    BAD("tensors_more_than_bytes", HEAD("\2", "\0"), "said to hold 2 tensors in 24 bytes"),
    BAD("keys_more_than_bytes", HEAD("\0", "\2"), "said to hold 2 keys in 24 bytes"),
    BAD("key_cut", HEAD("\0", "\1") "\5" Z7 "abcdef", "ends at byte 38 inside key \"abcde\""),
    BAD("key_length_huge", HEAD("\0", "\1") ALL_ONES "abcdefgh", "inside a key (truncated?)"),
    BAD("key_empty", HEAD("\0", "\1") KEY("\0", "", "\0") "\7.....", "key 0 has a name of 0 bytes"),
    BAD("key_control", HEAD("\0", "\1") KEY("\3", "a\33b", "\0") "\7", "\"a?b\"",
        "control byte 0x1b"),
    BAD("key_nul", HEAD("\0", "\1") KEY("\3", "a\0b", "\0") "\7", "control byte 0x00"),
    BAD("key_twice", HEAD("\0", "\2") KEY("\3", "a.b", "\0") "\7" KEY("\3", "a.b", "\0") "\7",
        "key \"a.b\" occurs twice"),
    BAD("type_unknown", HEAD("\0", "\1") KEY("\3", "a.b", "\15") "\7",
        "key \"a.b\" has the unknown type 13"),
    BAD("scalar_cut", HEAD("\0", "\1") KEY("\3", "a.b", "\12") "\1\2\3",
        "ends at byte 42 inside key \"a.b\""),
    BAD("bool_2", HEAD("\0", "\1") KEY("\3", "a.b", "\7") "\2",
        "key \"a.b\": a bool of 2 at byte 39"),
    BAD("string_cut", HEAD("\0", "\1") KEY("\3", "a.b", "\10") TEXT("\4", "abc"),
        "inside key \"a.b\""),
    BAD("string_length_huge", HEAD("\0", "\1") KEY("\3", "a.b", "\10") ALL_ONES,
        "inside key \"a.b\""),
    BAD("array_of_arrays", HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\11" Z3 "\1" Z7 "........",
        "key \"a.b\" is an array of arrays"),
    BAD("array_type", HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\377" Z3 "\1" Z7 "....",
        "key \"a.b\" has the unknown type 255"),
    BAD("array_cut", HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\4" Z3 "\3" Z7 "12345678",
        "key \"a.b\" is said to have 3 elements of type u32, but 8 bytes follow"),
    BAD("array_count_overflows",
        HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\12" Z3 "\2\0\0\0\0\0\0\40" "12345678",
        "said to have 2305843009213693954 elements of type u64"),
    BAD("array_strings_many", HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\10" Z3 ALL_ONES,
        "18446744073709551615 elements of type string"),
    BAD("array_string_cut",
        HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\10" Z3 "\2" Z7 TEXT("\1", "x") TEXT("\2", "y"),
        "inside key \"a.b\""),
    BAD("array_bool_3", HEAD("\0", "\1") KEY("\3", "a.b", "\11") "\7" Z3 "\3" Z7 "\0\1\3",
        "a bool of 3 at byte 53"),
    BAD("align_0", HEAD("\0", "\1") KEY("\21", "general.alignment", "\4") "\0" Z3,
        "general.alignment is 0, a power of two"),
    BAD("align_24", HEAD("\0", "\1") KEY("\21", "general.alignment", "\4") "\30" Z3,
        "general.alignment is 24, a power of two of at most 1048576"),
    BAD("align_2_gib", HEAD("\0", "\1") KEY("\21", "general.alignment", "\4") "\0\0\0\200",
        "general.alignment is 2147483648"),
    BAD("align_string", HEAD("\0", "\1") KEY("\21", "general.alignment", "\10") TEXT("\1", "8"),
        "key \"general.alignment\" has type string, expected an integer"),
    BAD("align_negative", HEAD("\0", "\1") KEY("\21", "general.alignment", "\1") "\376",
        "\"general.alignment\" is -2, the least allowed is 0"),
    BAD("info_cut", HEAD("\1", "\0") TEXT("\3", "x.w") "\2" Z3 "12345678", "inside tensor \"x.w\""),
    BAD("name_cut", HEAD("\1", "\0") "\100" Z7 "12345678123456789", "inside the tensor infos"),
    BAD("name_empty", HEAD("\1", "\0") TEXT("\0", "") "\1" Z3 "\0" Z7 "\0" Z3 "\0" Z7 Z7 "...",
        "a tensor without a name"),
    BAD("name_nul", HEAD("\1", "\0") TEXT("\3", "x\0w") "\1" Z3 "\1" Z7 "\0" Z3 "\0" Z7,
        "control byte 0x00"),
    BAD("name_control", HEAD("\1", "\0") TEXT("\3", "x\33w") "\1" Z3 "\0" Z7 "\0" Z3 "\0" Z7 Z7,
        "tensor \"x?w\": control byte 0x1b"),
    BAD("dims_5", HEAD("\1", "\0") TEXT("\3", "x.w") "\5" Z3 "12345678" "12345678",
        "tensor \"x.w\": 5 dimensions, at most 4"),
    BAD("tensor_type", HEAD("\1", "\0") INFO("\1", "\1", "\4", "\0"),
        "tensor \"x.w\" has the unknown type 4"),
    BAD("rows_not_whole", HEAD("\1", "\0") INFO("\41", "\1", "\10", "\0"),
        "tensor \"x.w\": rows of 33 values are no whole number of Q8_0 blocks of 32"),
    BAD("scalar_of_blocks", HEAD("\1", "\0") TEXT("\3", "x.w") "\0" Z3 "\10" Z3 "\0" Z7,
        "rows of 1 values are no whole number of Q8_0"),
    BAD("shape_overflow",
        HEAD("\1", "\0") TEXT("\3", "x.w") "\2" Z3 "\0\0\0\0\1\0\0\0" "\0\0\0\0\1\0\0\0" "\0" Z3
                                           "\0" Z7,
        "[4294967296, 4294967296] of F32 overflows 64 bits"),
    BAD("offset_unaligned", HEAD("\1", "\0") INFO("\1", "\1", "\0", "\4"),
        "tensor \"x.w\" at data byte 4, not a multiple of the alignment 32"),
    BAD("no_data", HEAD("\1", "\0") INFO("\1", "\1", "\0", "\0"),
        "tensor \"x.w\" takes 4 bytes at data byte 0, the file has 0 (truncated?)"),
    BAD("beyond", HEAD("\1", "\0") INFO("\1", "\1", "\0", "\40") Z7 Z7 "123456789012345678",
        "takes 4 bytes at data byte 32, the file has 3"),
    BAD("offset_huge",
        HEAD("\1", "\0") TEXT("\3", "x.w") "\1" Z3 "\1" Z7 "\0" Z3
                                           "\340\377\377\377\377\377\377\377"
                                           "........",
        "at data byte 18446744073709551584"),
    BAD("overlap",
        HEAD("\2", "\0") TEXT("\1", "a") "\1" Z3 "\12" Z7 "\0" Z3 "\0" Z7 /* 40 bytes */
        TEXT("\1", "b") "\1" Z3 "\1" Z7 "\0" Z3 "\40" Z7 Z7 Z7
        "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "\"a\" and \"b\" overlap"),
    BAD("name_twice",
        HEAD("\2", "\0") TEXT("\1", "a") "\1" Z3 "\0" Z7 "\0" Z3 "\0" Z7 TEXT("\1", "a") "\1" Z3
                         "\0" Z7 "\0" Z3 "\0" Z7 Z7 Z7 Z7,
        "tensor \"a\" is both in dir/f.gguf and in dir/f.gguf"),
};
/* clang-format on */

static void bad_check(const struct bad_case *c)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    int rc = cf_gguf_parse(&cat, &meta, 0, "dir/f.gguf", (const uint8_t *)c->bytes, c->size,
                           c->size, &err);
    CHECK(rc == CF_EFORMAT && err.code == CF_EFORMAT && !cat && !meta);
    CHECK_HAS(err.msg, "dir/f.gguf");
    for (int i = 0; i < 2; i++)
        if (c->want[i])
            CHECK_HAS(err.msg, c->want[i]);
    CHECK(!strchr(err.msg, '\33'));
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
}

static void malformed(void)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof *bad_cases; i++) {
        bool before = check_case_failed;
        check_case_failed = false;
        bad_check(&bad_cases[i]);
        if (check_case_failed)
            printf("    in %s\n", bad_cases[i].name);
        check_case_failed = check_case_failed || before;
    }
}

/* One key of every type, arrays, and tensors of several shapes. */
/* clang-format off */
static const char good[] =
    HEAD("\3", "\23") KEY("\2", "u8", "\0") "\377" KEY("\2", "i8", "\1") "\377"
    KEY("\3", "u16", "\2") "\1\2" KEY("\3", "i16", "\3") "\376\377"
    KEY("\3", "u32", "\4") "\0\0\0\200" KEY("\3", "i32", "\5") "\0\0\0\200"
    KEY("\3", "f32", "\6") "\0\0\300\77" KEY("\3", "yes", "\7") "\1"
    KEY("\3", "str", "\10") TEXT("\3", "a\0c")
    KEY("\5", "u32.s", "\11") "\4" Z3 "\2" Z7 "\1\0\0\0" "\377\377\377\377"
    KEY("\5", "i32.s", "\11") "\5" Z3 "\2" Z7 "\1\0\0\0" "\377\377\377\377"
    KEY("\5", "str.s", "\11") "\10" Z3 "\3" Z7 TEXT("\2", "ab") TEXT("\0", "") TEXT("\1", "\n")
    KEY("\6", "bool.s", "\11") "\7" Z3 "\2" Z7 "\1\0"
    KEY("\5", "f64.s", "\11") "\14" Z3 "\1" Z7 "\0\0\0\0\0\0\4\300"
    KEY("\4", "none", "\11") "\10" Z3 "\0" Z7
    KEY("\3", "u64", "\12") ALL_ONES KEY("\3", "i64", "\13") ALL_ONES
    KEY("\3", "f64", "\14") "\0\0\0\0\0\0\370\77"
    KEY("\21", "general.alignment", "\4") "\10" Z3
    TEXT("\1", "q") "\3" Z3 "\100" Z7 "\3" Z7 "\2" Z7 "\10" Z3 "\10" Z7
    TEXT("\1", "s") "\0" Z3 "\0" Z3 "\0" Z7
    TEXT("\1", "e") "\2" Z3 "\0" Z7 "\5" Z7 "\15" Z3 "\0" Z7;
/* clang-format on */

static void good_scalars(const cf_gguf *m)
{
    cf_err err = {0};
    uint32_t u = 7;
    int32_t i = 7;
    uint64_t v = 7;
    float f = 7;
    bool b = false;
    cf_text t = {"", 0};
    CHECK(cf_gguf_u32(m, "u8", &u, &err) == 1 && u == 255);
    CHECK(cf_gguf_i32(m, "i8", &i, &err) == 1 && i == -1);
    CHECK(cf_gguf_u32(m, "u16", &u, &err) == 1 && u == 0x201);
    CHECK(cf_gguf_i32(m, "i16", &i, &err) == 1 && i == -2);
    CHECK(cf_gguf_u32(m, "u32", &u, &err) == 1 && u == 0x80000000u);
    CHECK(cf_gguf_i32(m, "i32", &i, &err) == 1 && i == INT32_MIN);
    CHECK(cf_gguf_u64(m, "u64", &v, &err) == 1 && v == UINT64_MAX);
    CHECK(cf_gguf_i32(m, "i64", &i, &err) == 1 && i == -1);
    CHECK(cf_gguf_f32(m, "f32", &f, &err) == 1 && f == 1.5f);
    CHECK(cf_gguf_f32(m, "f64", &f, &err) == 1 && f == 1.5f);
    CHECK(cf_gguf_bool(m, "yes", &b, &err) == 1 && b);
    CHECK(cf_gguf_string(m, "str", &t, &err) == 1 && t.bytes == 3 && memcmp(t.at, "a\0c", 3) == 0);
    CHECK(cf_text_is((cf_text){"ab", 2}, "ab") && !cf_text_is(t, "a") && !cf_text_is(t, "abc"));
    CHECK_STR(err.msg, "");
    /* What is absent leaves the default. */
    u = 41;
    CHECK(cf_gguf_u32(m, "u", &u, &err) == 0 && cf_gguf_u32(m, "u33", &u, &err) == 0 && u == 41);
    CHECK(cf_gguf_string(m, "", &t, &err) == 0 && cf_gguf_bool(m, "z", &b, &err) == 0);
    CHECK_STR(err.msg, "");
}

/* Every lookup of a value of another type, or out of range, is refused with a sentence. */
static void good_refusals(const cf_gguf *m)
{
    uint32_t u = 3;
    int32_t i;
    uint64_t v;
    float f;
    bool b;
    cf_text t;
    cf_gguf_array a;
#define REFUSED(call, sentence)                                                                    \
    do {                                                                                           \
        cf_err err = {0};                                                                          \
        CHECK_INT(call, CF_EFORMAT);                                                               \
        CHECK_STR(err.msg, sentence);                                                              \
    } while (0)
    REFUSED(cf_gguf_u32(m, "u64", &u, &err),
            "f.gguf: key \"u64\" is 18446744073709551615, the most allowed is 4294967295");
    REFUSED(cf_gguf_u32(m, "i8", &u, &err), "f.gguf: key \"i8\" is -1, the least allowed is 0");
    REFUSED(cf_gguf_i32(m, "u32", &i, &err),
            "f.gguf: key \"u32\" is 2147483648, the most allowed is 2147483647");
    REFUSED(cf_gguf_u64(m, "i64", &v, &err), "f.gguf: key \"i64\" is -1, the least allowed is 0");
    REFUSED(cf_gguf_u32(m, "f32", &u, &err),
            "f.gguf: key \"f32\" has type f32, expected an integer");
    REFUSED(cf_gguf_u32(m, "yes", &u, &err),
            "f.gguf: key \"yes\" has type bool, expected an integer");
    REFUSED(cf_gguf_f32(m, "u32", &f, &err), "f.gguf: key \"u32\" has type u32, expected f32");
    REFUSED(cf_gguf_bool(m, "u8", &b, &err), "f.gguf: key \"u8\" has type u8, expected bool");
    REFUSED(cf_gguf_string(m, "str.s", &t, &err),
            "f.gguf: key \"str.s\" has type array, expected string");
    REFUSED(cf_gguf_get_array(m, "str", &a, &err),
            "f.gguf: key \"str\" has type string, expected array");
#undef REFUSED
    CHECK_INT(u, 3);
}

static void good_arrays(const cf_gguf *m)
{
    cf_gguf_array a;
    uint64_t v = 0;
    int64_t i = 0;
    float f = 0;
    bool b = false;
    cf_text t;
    REQUIRE(cf_gguf_get_array(m, "u32.s", &a, NULL) == 1 && a.count == 2 && a.type == CF_GGUF_U32);
    CHECK(cf_gguf_array_u64(&a, 1, &v) && v == UINT32_MAX);
    CHECK(cf_gguf_array_i64(&a, 1, &i) && i == UINT32_MAX);
    CHECK(!cf_gguf_array_f32(&a, 1, &f) && !cf_gguf_array_bool(&a, 0, &b));
    CHECK(!cf_gguf_array_string(&a, 0, &t));
    REQUIRE(cf_gguf_get_array(m, "i32.s", &a, NULL) == 1);
    CHECK(cf_gguf_array_u64(&a, 0, &v) && v == 1 && !cf_gguf_array_u64(&a, 1, &v));
    CHECK(cf_gguf_array_i64(&a, 1, &i) && i == -1);
    REQUIRE(cf_gguf_get_array(m, "str.s", &a, NULL) == 1 && a.count == 3);
    CHECK(cf_gguf_array_string(&a, 0, &t) && cf_text_is(t, "ab"));
    CHECK(cf_gguf_array_string(&a, 1, &t) && cf_text_is(t, ""));
    CHECK(cf_gguf_array_string(&a, 2, &t) && cf_text_is(t, "\n"));
    CHECK(!cf_gguf_array_u64(&a, 0, &v));
    REQUIRE(cf_gguf_get_array(m, "bool.s", &a, NULL) == 1);
    CHECK(cf_gguf_array_bool(&a, 0, &b) && b && cf_gguf_array_bool(&a, 1, &b) && !b);
    REQUIRE(cf_gguf_get_array(m, "f64.s", &a, NULL) == 1);
    CHECK(cf_gguf_array_f32(&a, 0, &f) && f == -2.5f);
    REQUIRE(cf_gguf_get_array(m, "none", &a, NULL) == 1 && a.count == 0);
}

static void good_file(void)
{
    uint64_t bytes = sizeof good - 1, data = (bytes + 7) / 8 * 8;
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    char text[64];
    CHECK_INT(cf_gguf_parse(&cat, &meta, 0, "f.gguf", (const uint8_t *)good, bytes,
                            data + 8 + 12 * 34, &err),
              0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat && meta);
    CHECK_INT(cf_gguf_count(meta), 19);
    cf_gguf_entry e = cf_gguf_at(meta, 2);
    CHECK(cf_text_is(e.key, "u16") && e.type == CF_GGUF_U16 && e.value_bytes == 2);
    CHECK(e.value[0] == 1 && e.value[1] == 2);
    e = cf_gguf_at(meta, 11);
    CHECK(cf_text_is(e.key, "str.s") && e.value_bytes == 12 + 24 + 3);
    CHECK_STR(cf_gguf_type_name(e.type), "array");
    CHECK(cf_gguf_memory(meta) > 400);
    good_scalars(meta);
    good_refusals(meta);
    good_arrays(meta);

    REQUIRE(cf_catalogue_count(cat) == 3);
    const cf_tensor *q = cf_catalogue_at(cat, 0), *s = cf_catalogue_at(cat, 1);
    CHECK_STR(cf_tensor_shape_text(q, text, sizeof text), "[2, 3, 64]");
    CHECK(q->format == CF_Q8_0 && q->extent.off == data + 8 && q->extent.bytes == 12 * 34);
    CHECK(s->format == CF_F32 && s->n_dims == 0 && s->extent.off == data && s->extent.bytes == 4);
    CHECK(cf_catalogue_at(cat, 2)->format == CF_Q5_K && cf_catalogue_at(cat, 2)->extent.bytes == 0);

    /* A second file of the same catalogue may not repeat a name; one byte less is too few. */
    cf_gguf *second = NULL;
    CHECK_INT(cf_gguf_parse(&cat, &second, 1, "g.gguf", (const uint8_t *)good, bytes,
                            data + 8 + 12 * 34, &err),
              CF_EFORMAT);
    CHECK_STR(err.msg, "tensor \"q\" is both in f.gguf and in g.gguf");
    CHECK(!second);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
    CHECK(!meta);
    cf_gguf_close(&meta);
    err = (cf_err){0};
    CHECK_INT(cf_gguf_parse(&cat, &meta, 0, "f.gguf", (const uint8_t *)good, bytes,
                            data + 7 + 12 * 34, &err),
              CF_EFORMAT);
    CHECK_STR(err.msg, "f.gguf: tensor \"q\" takes 408 bytes at data byte 8, the file has 415 "
                       "(truncated?)");
}

/* Every prefix of a good file is refused, never read past. */
static void every_cut(void)
{
    for (size_t n = 0; n < sizeof good - 1; n++) {
        cf_err err = {0};
        cf_catalogue *cat = NULL;
        cf_gguf *meta = NULL;
        uint8_t *exact = malloc(n + 1); /* so that the sanitizer sees a byte too far */
        memcpy(exact, good, n);
        CHECK_INT(cf_gguf_parse(&cat, &meta, 0, "f.gguf", exact, n, n, &err), CF_EFORMAT);
        CHECK(!cat && !meta && strstr(err.msg, "f.gguf"));
        free(exact);
    }
}

/* ---- files ---- */

static void open_bad(const char *path, const char *part, const char *also)
{
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    CHECK(cf_gguf_open(path, &cat, &meta, &err) < 0 && !cat && !meta);
    CHECK_HAS(err.msg, part);
    CHECK_HAS(err.msg, also);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
}

/* A part: split.no, split.count, split.tensors.count and one empty tensor. */
static void part_write(const char *path, uint8_t no, uint8_t count, uint8_t tensors, char name)
{
    char bytes[] = HEAD("\1", "\3")
        KEY("\10", "split.no", "\2") "N\0" KEY("\13", "split.count", "\2") "C\0" KEY(
            "\23", "split.tensors.count", "\5") "T" Z3 TEXT("\1", "#") "\1" Z3 "\0" Z7 "\0" Z3
                                                                       "\0" Z7 Z7 Z7 Z7 Z7;
    for (size_t i = 24; i < sizeof bytes - 1; i++)
        bytes[i] = bytes[i] == 'N'   ? (char)no
                   : bytes[i] == 'C' ? (char)count
                   : bytes[i] == 'T' ? (char)tensors
                   : bytes[i] == '#' ? name
                                     : bytes[i];
    tmp_write(path, bytes, sizeof bytes - 1);
}

static void split_files(void)
{
    tmp_dir d;
    tmp_dir_init(&d);
    const char *one = tmp_path(&d, "m-00001-of-00003.gguf");
    const char *two = tmp_path(&d, "m-00002-of-00003.gguf");
    const char *three = tmp_path(&d, "m-00003-of-00003.gguf"), *odd = tmp_path(&d, "odd.gguf");
    part_write(one, 0, 3, 3, 'a');
    part_write(two, 1, 3, 3, 'b');
    open_bad(one, "cannot open", "m-00003-of-00003.gguf");
    part_write(three, 2, 3, 3, 'c');
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    CHECK_INT(cf_gguf_open(one, &cat, &meta, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat && meta);
    CHECK(cf_catalogue_file_count(cat) == 3 && cf_catalogue_count(cat) == 3);
    CHECK_INT(cf_catalogue_at(cat, (uint32_t)cf_catalogue_find(cat, "c"))->extent.file, 2);
    CHECK_STR(cf_catalogue_path(cat, 2), three);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);

    open_bad(two, "is part 2 of 3: open ", "m-00001-of-00003.gguf");
    part_write(odd, 0, 3, 3, 'a');
    open_bad(odd, "odd.gguf is part 1 of 3, but its name does not end in", "-00001-of-00003.gguf");
    part_write(odd, 3, 3, 3, 'a');
    open_bad(odd, "split.no is 3 and split.count 3", "odd.gguf");
    part_write(odd, 0, 1, 9, 'a'); /* whole: the other keys do not matter */
    CHECK_INT(cf_gguf_open(odd, &cat, &meta, NULL), 0);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
    part_write(three, 1, 3, 3, 'c');
    open_bad(one, "00003-of-00003.gguf says it is part 2 of 3, part 3 of 3 was expected", "m-");
    part_write(three, 2, 4, 3, 'c');
    open_bad(one, "says it is part 3 of 4, part 3 of 3 was expected", "m-00003");
    part_write(three, 2, 3, 4, 'c');
    open_bad(one, "split.tensors.count is 4, part 1 says 3", "m-00003");
    part_write(three, 2, 3, 3, 'a');
    open_bad(one, "tensor \"a\" is both in", "m-00003");
    part_write(three, 2, 3, 2, 'c');
    part_write(two, 1, 3, 2, 'b');
    part_write(one, 0, 3, 2, 'a');
    open_bad(one, "split.tensors.count is 2, the 3 parts hold 3", "m-00001");
    tmp_dir_finish(&d);
}

static void not_a_file(void)
{
    tmp_dir d;
    tmp_dir_init(&d);
    open_bad(d.path, "not a regular file", d.path);
    open_bad(tmp_path(&d, "none.gguf"), "cannot open", "none.gguf");
    const char *path = tmp_path(&d, "f.gguf");
    tmp_write(path, "GGUF\3", 5);
    open_bad(path, "f.gguf: ends at byte 5 inside the header", "truncated?");
    unlink(path);
    CHECK_INT(mkfifo(path, 0600), 0); /* must not hang */
    open_bad(path, "f.gguf", "not a regular file");
    tmp_dir_finish(&d);
}

/* A header larger than one read: a big array of strings arrives whole, from several reads. */
static void large_header(void)
{
    enum { N = 200000, TEXT_BYTES = 8 + 7 };
    static const char head[] = HEAD("\0", "\2") KEY("\3", "big", "\11") "\10" Z3;
    static const char tail[] = KEY("\3", "end", "\0") "\52";
    size_t size = sizeof head - 1 + 8 + (size_t)N * TEXT_BYTES + sizeof tail - 1, used;
    uint8_t *bytes = calloc(1, size);
    memcpy(bytes, head, used = sizeof head - 1);
    for (int i = 0; i < 3; i++)
        bytes[used + (size_t)i] = (uint8_t)(N >> 8 * i);
    used += 8;
    for (int i = 0; i < N; i++) {
        char text[16];
        snprintf(text, sizeof text, "t%06d", i);
        bytes[used] = 7;
        memcpy(bytes + used + 8, text, 7);
        used += TEXT_BYTES;
    }
    memcpy(bytes + used, tail, sizeof tail - 1);
    tmp_dir d;
    tmp_dir_init(&d);
    tmp_write(tmp_path(&d, "big.gguf"), bytes, size);
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    CHECK_INT(cf_gguf_open(tmp_path(&d, "big.gguf"), &cat, &meta, &err), 0);
    CHECK_STR(err.msg, "");
    tmp_dir_finish(&d);
    free(bytes);
    REQUIRE(meta);
    cf_gguf_array a;
    cf_text t;
    uint32_t end = 0;
    CHECK(cf_gguf_get_array(meta, "big", &a, NULL) == 1 && a.count == N);
    for (uint64_t i = 0; i < N; i += 4999) {
        char text[16];
        snprintf(text, sizeof text, "t%06d", (int)i);
        CHECK(cf_gguf_array_string(&a, i, &t) && cf_text_is(t, text));
    }
    CHECK(cf_gguf_u32(meta, "end", &end, NULL) == 1 && end == 42);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
}

/* ---- real layouts ---- */

struct fixture {
    const char *name, *arch;
    uint32_t tensors, keys;
    const char *tensor, *shape;
    cf_format format;
};

static const struct fixture fixtures[] = {
    {"deepseek_v2-q4_0", "deepseek2", 50, 39, "blk.2.ffn_up_exps.weight", "[8, 64, 128]", CF_Q4_1},
    {"deepseek_v3-bf16", "deepseek2", 52, 46, "blk.2.ffn_up_exps.weight", "[8, 32, 96]", CF_BF16},
    {"gpt_oss-mxfp4", "gpt-oss", 79, 33, "blk.3.ffn_up_exps.weight", "[6, 96, 128]", CF_MXFP4},
    {"longcat_flash-f32", "longcat-flash", 83, 40, "blk.0.ffn_gate_exps.weight", "[6, 32, 64]",
     CF_F32},
    {"longcat_flash-q8_0-q4_k", "longcat-flash", 65, 40, "blk.0.ffn_down_exps.weight",
     "[5, 256, 128]", CF_Q5_0},
    {"longcat_ngram-q8_0", "longcat-ngram", 67, 43, "ngram_embd.weight", "[3484, 32]", CF_Q8_0},
    {"longcat_ngram-tables-q8_0", "longcat-flash-ngram", 73, 41, "ngram_embd.0.weight", "[865, 32]",
     CF_Q8_0},
    {"mixtral-iq4", "llama", 23, 29, "blk.1.ffn_up_exps.weight", "[4, 256, 256]", CF_IQ4_NL},
    {"olmoe-q2_k-q3_k", "olmoe", 27, 24, "blk.1.ffn_up_exps.weight", "[5, 256, 256]", CF_Q3_K},
    {"qwen3_moe-q4_k_m", "qwen3moe", 27, 27, "blk.1.ffn_up_exps.weight", "[4, 256, 256]", CF_Q4_K},
    {"split/deepseek_v3-fused-f16-00001-of-00003", "deepseek2", 33, 49,
     "blk.1.ffn_gate_up_exps.weight", "[8, 64, 96]", CF_F16},
};

static void fixture_check(const struct fixture *f)
{
    char path[200], key[100], text[64];
    snprintf(path, sizeof path, FIXTURES "%s.gguf", f->name);
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    CHECK_INT(cf_gguf_open(path, &cat, &meta, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(cat && meta);
    cf_text arch = {"", 0}, t;
    CHECK_INT(cf_gguf_string(meta, "general.architecture", &arch, &err), 1);
    CHECK(cf_text_is(arch, f->arch));
    CHECK_INT(cf_gguf_count(meta), f->keys);
    CHECK_INT(cf_catalogue_count(cat), f->tensors);
    int64_t i = cf_catalogue_find(cat, f->tensor);
    REQUIRE(i >= 0);
    const cf_tensor *x = cf_catalogue_at(cat, (uint32_t)i);
    CHECK_STR(cf_tensor_shape_text(x, text, sizeof text), f->shape);
    CHECK_STR(cf_format_name(x->format), cf_format_name(f->format));
    /* The vocabulary's size is the embedding's rows; each string can be read. */
    uint32_t width = 0;
    snprintf(key, sizeof key, "%s.embedding_length", f->arch);
    CHECK_INT(cf_gguf_u32(meta, key, &width, &err), 1);
    const cf_tensor *embd =
        cf_catalogue_at(cat, (uint32_t)cf_catalogue_find(cat, "token_embd.weight"));
    cf_gguf_array tokens = {0};
    CHECK_INT(cf_gguf_get_array(meta, "tokenizer.ggml.tokens", &tokens, &err), 1);
    CHECK(embd->n_dims == 2 && embd->shape[0] == tokens.count && embd->shape[1] == width);
    for (uint64_t k = 0; k < tokens.count; k++)
        CHECK(cf_gguf_array_string(&tokens, k, &t) && t.bytes > 0 && t.bytes < 100);
    cf_catalogue_close(&cat);
    cf_gguf_close(&meta);
}

static void real_files(void)
{
    if (access(FIXTURES "README.md", R_OK) != 0)
        SKIP("no " FIXTURES);
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        bool before = check_case_failed;
        check_case_failed = false;
        fixture_check(&fixtures[i]);
        if (check_case_failed)
            printf("    in %s\n", fixtures[i].name);
        check_case_failed = check_case_failed || before;
    }
}

int main(void)
{
    RUN(good_file);
    RUN(malformed);
    RUN(every_cut);
    RUN(large_header);
    RUN(not_a_file);
    RUN(split_files);
    RUN(real_files);
    return check_done();
}
