/* Tokenizer: finding and opening its files. See cf_tokenizer_place in tokenizer.h. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/json.h"
#include "runtime/base/lfs.h"
#include "runtime/model_file.h"
#include "runtime/tokenizer_parts.h"

/* --- files ----------------------------------------------------------------------------------- */

/* The whole of a regular file; 1 when it does not exist and that is allowed. */
static int file_read(const char *path, bool optional, tok_buf *out, cf_err *err)
{
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        if (optional && errno == ENOENT)
            return 1;
        return CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
    }
    if (fstat(fd, &st) != 0) {
        rc = CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = CF_FAIL(err, CF_EFORMAT, "%s is not a file", path);
        goto fail;
    }
    if (st.st_size > TOK_FILE_BYTES_MAX) {
        rc = CF_FAIL(err, CF_ELIMIT, "%s: %lld bytes, the limit for a tokenizer is %d", path,
                     (long long)st.st_size, TOK_FILE_BYTES_MAX);
        goto fail;
    }
    CF_TRY(tok_buf_reserve(out, (size_t)st.st_size + 1, err));
    while (out->n < (size_t)st.st_size) {
        ssize_t n = read(fd, out->data + out->n, (size_t)st.st_size - out->n);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (n == 0)
            break; /* shorter than it was: what is there decides */
        out->n += (size_t)n;
    }
    CF_TRY(cf_lfs_refuse(path, out->data, out->n, out->n, err));
fail:
    close(fd);
    return rc;
}

static json_t *json_parse(const char *text, size_t bytes, const char *path, cf_err *err)
{
    return cf_json_parse(path, text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL,
                         TOK_JSON_VALUES_MAX, err);
}

/* dir/name; false, with a sentence, where that is too long. */
static bool path_join(const char *dir, const char *name, char path[PATH_MAX], cf_err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) < PATH_MAX)
        return true;
    CF_FAIL(err, -ENAMETOOLONG, "%s: the path is too long", dir);
    return false;
}

/* tokenizer_config.json; *root stays NULL where there is none. */
static int config_read(const char *dir, json_t **root, char path[PATH_MAX], cf_err *err)
{
    tok_buf text = {0};
    *root = NULL;
    if (!path_join(dir, "tokenizer_config.json", path, err))
        return -ENAMETOOLONG;
    int rc = file_read(path, true, &text, err);
    if (rc == 0) {
        *root = json_parse(text.data, text.n, path, err);
        rc = *root ? 0 : CF_EFORMAT;
    }
    tok_buf_finish(&text);
    return rc < 0 ? rc : 0;
}

/* The same out of a pack. */
static int packed_config_read(const cf_tokenizer_place *place, json_t **root, char path[PATH_MAX],
                              cf_err *err)
{
    cf_text text;
    *root = NULL;
    snprintf(path, PATH_MAX, "tokenizer_config.json of %.*s", PATH_MAX - 64, place->gguf_path);
    if (!cf_model_file_packed(place->gguf, "tokenizer_config.json", &text))
        return 0;
    *root = json_parse(text.at, text.bytes, path, err);
    return *root ? 0 : CF_EFORMAT;
}

/* --- from memory ----------------------------------------------------------------------------- */

/* Ends the making of a tokenizer: it is given out, or closed. */
static int give(cf_tokenizer *tok, int rc, cf_tokenizer **out, cf_err *err)
{
    if (rc == 0)
        rc = tok_added_seal_all(tok, err);
    if (rc < 0)
        cf_tokenizer_close(&tok);
    *out = rc < 0 ? NULL : tok;
    return rc;
}

static cf_tokenizer *make(size_t bytes, const char *path, cf_err *err)
{
    if (bytes > TOK_FILE_BYTES_MAX) {
        CF_FAIL(err, CF_ELIMIT, "%s: %zu bytes, the limit for a tokenizer is %d", path, bytes,
                TOK_FILE_BYTES_MAX);
        return NULL;
    }
    cf_tokenizer *tok = calloc(1, sizeof *tok);
    if (!tok)
        CF_FAIL(err, -ENOMEM, "%s: no memory for a tokenizer", path);
    return tok;
}

int cf_tokenizer_parse(const char *json, size_t json_bytes, const char *path, cf_tokenizer **out,
                       cf_err *err)
{
    *out = NULL;
    cf_tokenizer *tok = make(json_bytes, path, err);
    if (!tok)
        return json_bytes > TOK_FILE_BYTES_MAX ? CF_ELIMIT : -ENOMEM;
    json_t *root = json_parse(json, json_bytes, path, err);
    int rc = root ? tok_json_read(tok, root, path, err) : CF_EFORMAT;
    json_decref(root);
    return give(tok, rc, out, err);
}

int cf_tokenizer_parse_spm(const uint8_t *data, size_t bytes, const char *path, cf_tokenizer **out,
                           cf_err *err)
{
    *out = NULL;
    cf_tokenizer *tok = make(bytes, path, err);
    if (!tok)
        return bytes > TOK_FILE_BYTES_MAX ? CF_ELIMIT : -ENOMEM;
    return give(tok, tok_spm_read(tok, data, bytes, path, err), out, err);
}

int cf_tokenizer_parse_ranks(const char *text, size_t bytes, const char *rule,
                             const cf_tokenizer_rules *rules, const char *path, cf_tokenizer **out,
                             cf_err *err)
{
    const cf_tokenizer_rule *found = tok_rule_find(rules, rule, strlen(rule));
    *out = NULL;
    cf_tokenizer *tok = make(bytes, path, err);
    if (!tok)
        return bytes > TOK_FILE_BYTES_MAX ? CF_ELIMIT : -ENOMEM;
    if (!found)
        found = tok_rule_refuse(tok, rules, path, "a rank file split like", "", rule, strlen(rule));
    return give(tok, tok_tiktoken_read(tok, text, bytes, found, path, err), out, err);
}

int cf_tokenizer_parse_list(const char *json, size_t json_bytes, const cf_tokenizer_rules *rules,
                            const char *path, cf_tokenizer **out, cf_err *err)
{
    *out = NULL;
    cf_tokenizer *tok = make(json_bytes, path, err);
    if (!tok)
        return json_bytes > TOK_FILE_BYTES_MAX ? CF_ELIMIT : -ENOMEM;
    json_t *root = json_parse(json, json_bytes, path, err);
    int rc = root ? tok_list_read(tok, root, rules, path, err) : CF_EFORMAT;
    json_decref(root);
    return give(tok, rc, out, err);
}

int cf_tokenizer_parse_gguf(const cf_gguf *meta, const cf_tokenizer_rules *rules, const char *path,
                            cf_tokenizer **out, cf_err *err)
{
    *out = NULL;
    cf_tokenizer *tok = make(0, path, err);
    if (!tok)
        return -ENOMEM;
    return give(tok, tok_gguf_read(tok, meta, rules, path, err), out, err);
}

/* --- a folder -------------------------------------------------------------------------------- */

typedef enum { FORM_NONE, FORM_JSON, FORM_SPM, FORM_RANKS, FORM_LIST, FORM_GGUF } form;

/* The name of the one rank file under a name of its own; empty where there is none. */
static int ranks_find(const char *dir, char name[256], cf_err *err)
{
    static const char end[] = ".tiktoken";
    int rc = 0;
    name[0] = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && rc == 0 && (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name);
        if (n <= sizeof end - 1 || strcmp(e->d_name + n - (sizeof end - 1), end) != 0)
            continue;
        if (name[0])
            rc = CF_FAIL(err, CF_EFORMAT, "%s has more than one rank file: %s and %s", dir, name,
                         e->d_name);
        else
            snprintf(name, 256, "%s", e->d_name);
    }
    if (d)
        closedir(d);
    return rc;
}

/* The same in a pack. */
static bool packed_ranks_find(const cf_gguf *meta, char name[256], cf_text *text)
{
    static const char prefix[] = CF_PACK_FILE_KEY, end[] = ".tiktoken";
    const size_t n = sizeof prefix - 1, k = sizeof end - 1;
    for (uint32_t i = 0; meta && i < cf_gguf_count(meta); i++) {
        cf_text key = cf_gguf_at(meta, i).key;
        if (key.bytes <= n + k || key.bytes - n > 255 || memcmp(key.at, prefix, n) != 0 ||
            memcmp(key.at + key.bytes - k, end, k) != 0)
            continue;
        snprintf(name, 256, "%.*s", (int)(key.bytes - n), key.at + n);
        return cf_model_file_packed(meta, name, text);
    }
    return false;
}

static const struct {
    form f;
    const char *name;
} files[] = {{FORM_JSON, "tokenizer.json"},
             {FORM_SPM, "tokenizer.model"},
             {FORM_RANKS, "tiktoken.model"},
             {FORM_LIST, "tokenizer.tok.json"}};

/* The first that a pack carries. */
static bool packed_form_find(const cf_tokenizer_place *place, form *f, char path[PATH_MAX],
                             char rule[256], cf_text *packed)
{
    const char *name = rule;
    *f = FORM_NONE;
    for (size_t i = 0; i < sizeof files / sizeof *files && *f == FORM_NONE; i++)
        if (cf_model_file_packed(place->gguf, files[i].name, packed)) {
            *f = files[i].f;
            name = files[i].name;
        }
    if (*f == FORM_NONE && packed_ranks_find(place->gguf, rule, packed))
        *f = FORM_RANKS;
    if (*f == FORM_NONE)
        return false;
    snprintf(path, PATH_MAX, "%.255s of %.*s", name, PATH_MAX - 300, place->gguf_path);
    if (name == rule)
        *strrchr(rule, '.') = 0;
    return true;
}

/* packed: its bytes, where a pack carries it; else at is NULL. */
static int form_find(const cf_tokenizer_place *place, form *f, char path[PATH_MAX], char rule[256],
                     cf_text *packed, cf_err *err)
{
    rule[0] = 0;
    if (packed_form_find(place, f, path, rule, packed))
        return 0;
    *packed = (cf_text){0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (!path_join(place->dir, files[i].name, path, err))
            return -ENAMETOOLONG;
        if (access(path, F_OK) != 0)
            continue;
        *f = files[i].f;
        return 0;
    }
    int rc = ranks_find(place->dir, rule, err);
    if (rc < 0)
        return rc;
    if (rule[0]) {
        if (!path_join(place->dir, rule, path, err))
            return -ENAMETOOLONG;
        *strrchr(rule, '.') = 0;
        *f = FORM_RANKS;
    } else if (place->gguf) {
        cf_text model;
        cf_err ignored = {0};
        /* A model may say that it has no vocabulary. */
        int got = cf_gguf_string(place->gguf, "tokenizer.ggml.model", &model, &ignored);
        if (got < 0 || (got == 1 && !cf_text_is(model, "none") && !cf_text_is(model, "no_vocab")))
            *f = FORM_GGUF;
        snprintf(path, PATH_MAX, "%s", place->gguf_path);
    }
    return 0;
}

static int packed_copy(const cf_text *packed, const char *path, tok_buf *out, cf_err *err)
{
    int rc = packed->bytes > TOK_FILE_BYTES_MAX
                 ? CF_FAIL(err, CF_ELIMIT, "%s: %llu bytes, the limit for a tokenizer is %d", path,
                           (unsigned long long)packed->bytes, TOK_FILE_BYTES_MAX)
                 : tok_buf_reserve(out, packed->bytes + 1, err);
    if (rc < 0)
        return rc;
    memcpy(out->data, packed->at, packed->bytes);
    out->n = packed->bytes;
    return 0;
}

/* A file with what tokenizer_config.json adds to it. */
static int file_open(const cf_tokenizer_place *place, form f, const char *path, const char *rule,
                     const cf_text *packed, cf_tokenizer **out, cf_err *err)
{
    char config_path[PATH_MAX];
    json_t *config = NULL;
    tok_buf text = {0};
    int rc = 0;
    CF_TRY(packed->at ? packed_config_read(place, &config, config_path, err)
                      : config_read(place->dir, &config, config_path, err));
    CF_TRY(packed->at ? packed_copy(packed, path, &text, err)
                      : file_read(path, false, &text, err));
    if (f == FORM_JSON) {
        CF_TRY(cf_tokenizer_parse(text.data, text.n, path, out, err));
    } else if (f == FORM_SPM) {
        CF_TRY(cf_tokenizer_parse_spm((const uint8_t *)text.data, text.n, path, out, err));
    } else if (f == FORM_LIST) {
        CF_TRY(cf_tokenizer_parse_list(text.data, text.n, place->rules, path, out, err));
    } else {
        const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
        if (!rule[0])
            rule = class ? class : "default";
        CF_TRY(cf_tokenizer_parse_ranks(text.data, text.n, rule, place->rules, path, out, err));
    }
    if (config)
        CF_TRY(tok_json_read_config(*out, config, f == FORM_SPM || f == FORM_RANKS, config_path,
                                    err));
fail:
    if (rc < 0)
        cf_tokenizer_close(out);
    json_decref(config);
    tok_buf_finish(&text);
    return rc;
}

int cf_tokenizer_load(const char *path, cf_tokenizer **out, cf_err *err)
{
    tok_buf text = {0};
    json_t *config = NULL;
    char dir[PATH_MAX], config_path[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int rc = 0;
    *out = NULL;
    if (snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) + 1 : 1,
                 slash ? path : ".") >= (int)sizeof dir)
        return CF_FAIL(err, -ENAMETOOLONG, "%s: the path is too long", path);
    CF_TRY(file_read(path, false, &text, err));
    CF_TRY(cf_tokenizer_parse(text.data, text.n, path, out, err));
    CF_TRY(config_read(dir, &config, config_path, err));
    if (config)
        CF_TRY(tok_json_read_config(*out, config, false, config_path, err));
fail:
    if (rc < 0)
        cf_tokenizer_close(out);
    json_decref(config);
    tok_buf_finish(&text);
    return rc;
}

int cf_tokenizer_open(const cf_tokenizer_place *place, cf_tokenizer **out,
                      char name[CF_TOKENIZER_NAME_BYTES], cf_err *err)
{
    char path[PATH_MAX], rule[256];
    form f;
    cf_text packed;
    *out = NULL;
    int rc = form_find(place, &f, path, rule, &packed, err);
    if (rc < 0)
        return rc;
    if (name)
        snprintf(name, CF_TOKENIZER_NAME_BYTES, "%.*s", CF_TOKENIZER_NAME_BYTES - 1,
                 f == FORM_NONE ? "" : path);
    switch (f) {
    case FORM_NONE:
        return 0;
    case FORM_JSON:
    case FORM_SPM:
    case FORM_RANKS:
    case FORM_LIST:
        return file_open(place, f, path, rule, &packed, out, err);
    case FORM_GGUF:
        return cf_tokenizer_parse_gguf(place->gguf, place->rules, path, out, err);
    }
    return 0;
}

bool cf_tokenizer_exists(const cf_tokenizer_place *place)
{
    char path[PATH_MAX], rule[256];
    form f;
    cf_text packed;
    cf_err ignored = {0};
    return form_find(place, &f, path, rule, &packed, &ignored) < 0 || f != FORM_NONE;
}
