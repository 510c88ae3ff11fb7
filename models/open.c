/* Opening a model: a directory of config and safetensors, a GGUF file, or a directory with one. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/gguf.h"
#include "models/open_pack.h"
#include "models/stored.h"
#include "models/tokenizer_rules.h"
#include "runtime/base/json.h"
#include "runtime/engine.h"
#include "storage/safetensors.h"

enum { MAX_DIR_BYTES = 3000 };

json_t *cf_config_read(const char *path, cf_err *err)
{
    return cf_json_load(path, CF_CONFIG_BYTES_MAX, CF_CONFIG_VALUES_MAX, err);
}

/* Everything must have a role: a tensor that nobody asked for hides a mistake. */
static int tensors_all_bound(const cf_build *b, cf_err *err)
{
    const cf_catalogue *cat = b->model->cat;
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++)
        if (!b->bound[i])
            return CF_FAIL(err, CF_EFORMAT, "%s: the %s family does not know tensor %s",
                           b->model->dir, b->model->spec.family, cf_catalogue_at(cat, i)->name);
    return 0;
}

void cf_spec_names(cf_spec *spec, const char *dir, const json_t *config)
{
    const char *end = dir + strlen(dir);
    while (end > dir && end[-1] == '/')
        end--;
    const char *begin = end;
    while (begin > dir && begin[-1] != '/')
        begin--;
    snprintf(spec->name, sizeof spec->name, "%.*s", (int)(end - begin), begin);
    const char *arch =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const char *type = json_string_value(json_object_get(config, "model_type"));
    snprintf(spec->architecture, sizeof spec->architecture, "%s", arch ? arch : type ? type : "");
}

/* What the ops demand of formats beyond what each weight may have. */
static int formats_check(const cf_model *m, cf_err *err)
{
    for (const cf_step *s = m->steps; s < m->steps + m->n_steps; s++) {
        if (s->kind == CF_STEP_EMBED && s->u.embed.resident != CF_NO_WEIGHT &&
            m->weights[s->u.embed.resident].scale.rows)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: tensor %s has outer scales; rows of an embedding are read without",
                           m->dir, m->weights[s->u.embed.resident].name);
        if (s->kind == CF_STEP_ROUTE && s->u.route.bias != CF_NO_WEIGHT) {
            const cf_weight_def *w = &m->weights[s->u.route.bias];
            if (w->dtype != CF_F32)
                return CF_FAIL(err, CF_EFORMAT,
                               "%s: tensor %s has dtype %s; a selection bias must be F32", m->dir,
                               w->name, cf_format_name(w->dtype));
        }
        for (uint32_t i = 1; s->kind == CF_STEP_ROWS && i < s->u.rows.n_tables; i++) {
            const cf_table_def *first = &m->tables[s->u.rows.first_table], *t = first + i;
            if (t->dtype != first->dtype)
                return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, %s beside it has %s",
                               m->dir, t->name, cf_format_name(t->dtype), first->name,
                               cf_format_name(first->dtype));
        }
    }
    return 0;
}

/* Runs the family over a config, with the model's catalogue or, when it has none, listing. */
static int family_run(cf_build *b, cf_err *err)
{
    const cf_family *f = cf_family_find(b->config, b->path, err);
    if (!f)
        return CF_EFORMAT;
    snprintf(b->model->spec.family, sizeof b->model->spec.family, "%s", f->name);
    b->model->spec.decoder_start = -1;
    int rc = cf_quant_read(b, err);
    if (rc == 0)
        rc = f->build(b, err);
    if (rc == 0 && b->model->pack)
        rc = cf_pack_bind(b, err);
    return rc == 0 && b->model->cat ? formats_check(b->model, err) : rc;
}

int cf_model_bind(cf_model *m, const json_t *config, const char *path, cf_err *err)
{
    cf_build b = {.config = config, .path = path, .model = m};
    m->tokenizer_rules = &cf_tokenizer_rules_known;
    b.bound = calloc(cf_catalogue_count(m->cat) + 1, 1);
    free(m->config);
    m->config = json_dumps(config, JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!b.bound || !m->config) {
        free(b.bound);
        return CF_FAIL(err, -ENOMEM, "out of memory for the model's tensors");
    }
    int rc = family_run(&b, err);
    if (rc == 0)
        rc = tensors_all_bound(&b, err);
    free(b.bound);
    return rc;
}

/* ---- where the model is ---- */

static bool ends_in(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

/* Whether a file may be a model, or the first part of one; beside models lie their vision towers. */
static bool is_gguf_model(const char *name)
{
    unsigned part, parts;
    size_t n = strlen(name);
    if (!ends_in(name, ".gguf") || strncmp(name, "mmproj", 6) == 0)
        return false;
    return n <= 20 || sscanf(name + n - 20, "-%5u-of-%5u.gguf", &part, &parts) != 2 || part == 1;
}

/* The GGUF model of a directory, into path: its one file, or the first part. 0 when it has
 * safetensors, or nothing. */
static int gguf_find(const char *dir, char *path, size_t size, cf_err *err)
{
    char first[256] = "", name[256];
    unsigned n = 0;
    bool safetensors = false;
    DIR *d = opendir(dir);
    if (!d)
        return CF_FAIL(err, -errno, "cannot open model %s: %s", dir, strerror(errno));
    for (const struct dirent *e; (e = readdir(d));) {
        safetensors |= ends_in(e->d_name, ".safetensors");
        if (!is_gguf_model(e->d_name))
            continue;
        snprintf(name, sizeof name, "%s", e->d_name);
        if (!n++ || strcmp(name, first) < 0)
            memcpy(first, name, sizeof first);
    }
    closedir(d);
    if (!n || safetensors)
        return 0;
    if (n > 1)
        return CF_FAIL(err, CF_EFORMAT, "%s holds %u GGUF models, %s among them: name one file",
                       dir, n, first);
    snprintf(path, size, "%s/%s", dir, first);
    return 1;
}

enum { BELOW_ENTRIES_MAX = 2000 }; /* a home folder is not walked */

/* A folder below dir, at most `depth` folders down, that holds a config.json. Of several beside one
 * another the first by name. */
static bool model_below(const char *dir, unsigned depth, unsigned *entries, char *found,
                        size_t size)
{
    bool any = false;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d)) && (*entries)++ < BELOW_ENTRIES_MAX;) {
        char path[MAX_DIR_BYTES + 600], deeper[MAX_DIR_BYTES + 600];
        if (e->d_name[0] == '.' ||
            snprintf(path, sizeof path, "%s/%s/config.json", dir, e->d_name) >= (int)sizeof path)
            continue;
        struct stat st;
        bool here = stat(path, &st) == 0 && S_ISREG(st.st_mode);
        path[strlen(path) - strlen("/config.json")] = 0;
        if (here && (!any || strcmp(path, found) < 0))
            snprintf(found, size, "%s", path);
        any |= here;
        if (!any && depth > 1 && model_below(path, depth - 1, entries, deeper, sizeof deeper)) {
            snprintf(found, size, "%s", deeper);
            any = true;
        }
    }
    if (d)
        closedir(d);
    return any;
}

/* The commonest wrong path is a folder above or beside the model. */
static int no_model_here(const char *dir, cf_err *err)
{
    char found[MAX_DIR_BYTES + 600];
    unsigned entries = 0;
    bool below = model_below(dir, 2, &entries, found, sizeof found) &&
                 strlen(dir) + strlen(found) < sizeof err->msg - 100; /* whole, or not at all */
    return CF_FAIL(err, -ENOENT,
                   "%s holds no model: neither a config.json nor a GGUF file%s%s%s", dir,
                   below ? "; did you mean " : "", below ? found : "", below ? "?" : "");
}

static int directory_open(cf_model **out, const char *dir, cf_err *err)
{
    int rc = 0;
    json_t *config = NULL;
    char path[MAX_DIR_BYTES + 32];
    cf_model *m = calloc(1, sizeof *m);
    if (!m || !(m->dir = strdup(dir))) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for a model");
        goto fail;
    }
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (access(path, F_OK) < 0 && errno == ENOENT)
        CF_TRY(no_model_here(dir, err));
    config = cf_config_read(path, err);
    if (!config) {
        rc = err && err->code ? err->code : CF_EFORMAT;
        goto fail;
    }
    /* The family first: an unknown one is a better answer than a defect of its shards. */
    if (!cf_family_find(config, path, err)) {
        rc = CF_EFORMAT;
        goto fail;
    }
    CF_TRY(cf_safetensors_open(dir, &m->cat, err));
    cf_spec_names(&m->spec, dir, config);
    CF_TRY(cf_model_bind(m, config, path, err));
    *out = m;
    json_decref(config);
    return 0;
fail:
    json_decref(config);
    cf_model_free(&m);
    return rc;
}

int cf_model_open(cf_model **out, const char *path, cf_err *err)
{
    char found[MAX_DIR_BYTES + 300];
    struct stat st;
    if (strlen(path) > MAX_DIR_BYTES)
        return CF_FAIL(err, -ENAMETOOLONG, "the model's path has %zu bytes, at most %d are allowed",
                       strlen(path), (int)MAX_DIR_BYTES);
    if (stat(path, &st) < 0)
        return CF_FAIL(err, -errno, "cannot open model %s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) {
        int rc = gguf_find(path, found, sizeof found, err);
        if (rc < 0)
            return rc;
        return rc ? cf_gguf_model_open(out, found, err) : directory_open(out, path, err);
    }
    if (S_ISREG(st.st_mode) && ends_in(path, ".gguf"))
        return cf_gguf_model_open(out, path, err);
    return CF_FAIL(
        err, CF_EFORMAT,
        "%s is not a directory and not a GGUF file (.gguf); a model is one of the two, the "
        "directory with config.json and safetensors files",
        path);
}

int cf_engine_open(cf_engine **out, const char *model, const cf_options *options, cf_err *err)
{
    cf_model *m = NULL;
    int rc = cf_model_open(&m, model, err);
    if (rc == 0)
        rc = cf_engine_create(out, m, options, err);
    if (rc < 0)
        cf_model_free(&m);
    return rc;
}

int cf_model_expected(const json_t *config, const char *path, cf_expected **out, uint64_t *n,
                      cf_err *err)
{
    int rc = 0;
    cf_model *m = calloc(1, sizeof *m);
    cf_build b = {.config = config, .path = path, .model = m};
    if (!m || !(m->dir = strdup(path))) {
        rc = CF_FAIL(err, -ENOMEM, "out of memory for a model");
        goto fail;
    }
    CF_TRY(family_run(&b, err));
    *out = b.expected;
    *n = b.n_expected;
    cf_model_free(&m);
    return 0;
fail:
    cf_expected_free(b.expected, b.n_expected);
    cf_model_free(&m);
    return rc;
}

void cf_expected_free(cf_expected *list, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        free(list[i].name);
    free(list);
}
