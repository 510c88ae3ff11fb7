/* What people get wrong on their first day. Catches: a Git LFS pointer, a folder above the model or
 * a file that is no trace reported in a parser's words, an output that cannot be written found out
 * after the run, or written over a model or a trace, two flags of which one is silently dropped,
 * advice that changes what is as good.
 *
 * Runs the built binary (support/cli.h) on models it has written. */
#include <sys/stat.h>

#include "tests/check.h"
#include "tests/support/cli.h"

static tmp_dir dir;

static const char pointer[] =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n";

static void pointer_write(const char *name)
{
    tmp_write(tmp_path(&dir, name), pointer, sizeof pointer - 1);
}

static void git_lfs_pointers(void)
{
    static const char said[] = "is a Git LFS pointer of 130 bytes";
    static cli_result r;
    const char *d = dir.path;
    cli(&r, "mkmodel %s/lfs %s", d, cli_tiny);
    CHECK_INT(r.code, 0);
    static const char *const files[] = {"tokenizer.json", "tokenizer.model", "config.json",
                                        "model.safetensors"};
    for (int i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "lfs/%s", files[i]);
        char *kept = strdup(tmp_path(&dir, "kept"));
        CHECK(i < 2 || rename(tmp_path(&dir, name), kept) == 0);
        pointer_write(name);
        cli(&r, "run %s/lfs -p x --device ref", d);
        cli_failed_with(&r, files[i]);
        CHECK_HAS(r.err, said);
        CHECK_HAS(r.err, "git lfs pull");
        CHECK(i < 2 ? remove(tmp_path(&dir, name)) == 0 : rename(kept, tmp_path(&dir, name)) == 0);
        free(kept);
    }
    cli(&r, "verify %s/lfs", d);
    CHECK_INT(r.code, 0);
    pointer_write("lfs.gguf");
    cli(&r, "verify %s/lfs.gguf", d);
    cli_failed_with(&r, said);
}

/* The folder above is named, and the one below that was meant. */
static void folders_above(void)
{
    static cli_result r;
    const char *d = dir.path;
    CHECK_INT(mkdir(tmp_path(&dir, "hub"), 0777), 0);
    CHECK_INT(mkdir(tmp_path(&dir, "hub/snapshots"), 0777), 0);
    cli(&r, "info %s/hub", d);
    cli_failed_with(&r, "/hub holds no model: neither a config.json nor a GGUF file");
    CHECK(!strstr(r.err, "did you mean"));
    cli(&r, "mkmodel %s/hub/snapshots/abc %s", d, cli_tiny);
    CHECK_INT(r.code, 0);
    cli(&r, "info %s/hub", d);
    cli_failed_with(&r, "/hub/snapshots/abc?");
    cli(&r, "info %s/hub/snapshots", d);
    cli_failed_with(&r, "; did you mean ");
    CHECK_HAS(r.err, "/hub/snapshots/abc?");
}

static void outputs_fail_before_the_run(void)
{
    static cli_result r;
    const char *d = dir.path;
    static const char *const flags[] = {"--stats", "--trace", "--timeline", "--history"};
    for (int i = 0; i < 4; i++) {
        cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref %s %s/no/where", d, d, flags[i],
            d);
        cli_failed_with(&r, "/no/where");
        CHECK_STR(r.out, "");
    }
    for (int i = 0; i < 3; i++) {
        cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref %s %s/tiny/model.safetensors", d,
            d, flags[i], d);
        cli_failed_with(&r, "bytes holds a model");
    }
    cli(&r, "verify %s/tiny", d);
    CHECK_INT(r.code, 0);
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref -n 1 --history %s/new", d, d, d);
    CHECK_INT(r.code, 0);
    CHECK(cli_exists("new"));
    for (int with = 0; with < 2; with++) { /* and the statistics say that it knew more */
        cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref -n 1 --stats %s/s.json %s%s", d,
            d, d, with ? "--history " : "", with ? tmp_path(&dir, "new") : "");
        CHECK_INT(r.code, 0);
        json_t *stats = json_load_file(tmp_path(&dir, "s.json"), 0, NULL);
        const json_t *is = json_object_get(json_object_get(stats, "settings"), "history");
        CHECK(with ? json_is_true(is) : json_is_false(is));
        json_decref(stats);
    }
}

static void an_encoder_is_for_run(void)
{
    static cli_result r;
    static const char *const names[] = {"eval", "bench", "chat"};
    for (int i = 0; i < 3; i++) {
        char want[100], ids[300] = "";
        if (i == 0)
            snprintf(ids, sizeof ids, "--ids %s/ids", dir.path);
        cli(&r, "%s tests/fixtures/models/switch_transformers --device ref %s", names[i], ids);
        snprintf(want, sizeof want, "has an encoder, for whose input %s has no place", names[i]);
        cli_failed_with(&r, want);
    }
}

static void one_form_only(void)
{
    static cli_result r;
    cli(&r, "tune a.csv --svg b.csv b.csv");
    CHECK_INT(r.code, 2);
    CHECK_HAS(r.err, "--svg would write over the trace b.csv");
    cli(&r, "bench m --csv --json");
    CHECK_INT(r.code, 2);
    CHECK_HAS(r.err, "--json and --csv exclude each other");
    cli(&r, "bench io f --json --csv");
    CHECK_INT(r.code, 2);
    CHECK_HAS(r.err, "--json and --csv exclude each other");
}

static void what_is_no_trace(void)
{
    static cli_result r;
    tmp_write(tmp_path(&dir, "notes"), "# notes\n\nof a user\n", 19);
    cli(&r, "tune %s/notes --slots 8", dir.path);
    cli_failed_with(&r, "/notes, line 1: a trace begins with # and a JSON object, and here: ");
}

/* Where every record has a place no policy is better: the default stays. */
static void advice_between_equals(void)
{
    static cli_result r;
    const char *d = dir.path;
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref -n 4 --trace %s/t.csv", d, d, d);
    CHECK_INT(r.code, 0);
    cli(&r, "tune %s/t.csv --slots 100%%", d);
    CHECK_INT(r.code, 0);
    CHECK_HAS(r.out, "Recommended: --policy echo (");
    cli(&r, "tune %s/t.csv --slots 100%% --policy lru,lfu", d);
    CHECK_HAS(r.out, "Recommended: --policy lru (");
}

static void one_is_singular(void)
{
    static cli_result r;
    const char *d = dir.path;
    cli(&r, "run %s/tiny --ids %s/ids --print-ids --device ref -n 1 -v", d, d);
    CHECK_HAS(r.err, "stopped after 1 token:");
    tmp_write(tmp_path(&dir, "two"), "1 2\n", 4);
    cli(&r, "eval %s/tiny --ids %s/two --device ref", d, d);
    CHECK_HAS(r.out, "1 token in 1 window of ");
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    if (!cli_models_made())
        return 77;
    RUN(git_lfs_pointers);
    RUN(folders_above);
    RUN(outputs_fail_before_the_run);
    RUN(an_encoder_is_for_run);
    RUN(one_form_only);
    RUN(what_is_no_trace);
    RUN(advice_between_equals);
    RUN(one_is_singular);
    tmp_dir_finish(&dir);
    return check_done();
}
