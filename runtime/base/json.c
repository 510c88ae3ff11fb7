/* JSON with bounds: see json.h. */
#include "runtime/base/json.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/lfs.h"

enum { DEPTH_MAX = 1024 }; /* below the parser's own, which recurses */

int cf_json_check_bounds(const char *path, const char *text, size_t bytes, uint32_t max_depth,
                         uint32_t max_values, cf_err *err)
{
    uint32_t depth = 0, values = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"')
            in_string = true;
        else if (c == '{' || c == '[')
            depth++, values++;
        else if (c == ',')
            values++;
        else if ((c == '}' || c == ']') && depth)
            depth--;
        if (depth > max_depth)
            return CF_FAIL(err, CF_EFORMAT, "%s: JSON nested deeper than %u at byte %zu", path,
                           max_depth, i);
        if (values > max_values)
            return CF_FAIL(err, CF_EFORMAT, "%s: JSON of more than %u values", path, max_values);
    }
    return 0;
}

json_t *cf_json_parse(const char *path, const char *text, size_t bytes, size_t flags,
                      uint32_t max_values, cf_err *err)
{
    json_error_t e;
    if (cf_lfs_refuse(path, text, bytes, bytes, err) < 0)
        return NULL;
    if (cf_json_check_bounds(path, text, bytes, DEPTH_MAX, max_values, err) < 0)
        return NULL;
    json_t *root = json_loadb(text, bytes, flags, &e);
    if (root)
        return root;
    for (char *c = e.text; *c; c++) /* it quotes the file */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    CF_FAIL(err, CF_EFORMAT, "%s: line %d, column %d: %s", path, e.line, e.column, e.text);
    return NULL;
}

/* The whole file: its text, which the caller frees, or NULL. */
static char *file_read(const char *path, size_t max_bytes, size_t *bytes, cf_err *err)
{
    struct stat st;
    char *text = NULL;
    size_t n = 0;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would hang us */
    if (fd < 0 || fstat(fd, &st) < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot open %s: %s", path, strerror(errno)));
    if (!S_ISREG(st.st_mode))
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s is not a regular file", path));
    if ((uint64_t)st.st_size > max_bytes)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s has %lld bytes, at most %zu are expected", path,
                       (long long)st.st_size, max_bytes));
    text = malloc((size_t)st.st_size + 1);
    if (!text)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: no memory for %lld bytes", path, (long long)st.st_size));
    while (n < (size_t)st.st_size) {
        ssize_t got = read(fd, text + n, (size_t)st.st_size - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            CF_TRY(CF_FAIL(err, -errno, "cannot read %s: %s", path, strerror(errno)));
        if (got == 0)
            break; /* shorter than it was: what is there decides */
        n += (size_t)got;
    }
    *bytes = n;
fail:
    if (fd >= 0)
        close(fd);
    if (rc < 0) {
        free(text);
        text = NULL;
    }
    return text;
}

json_t *cf_json_load(const char *path, size_t max_bytes, uint32_t max_values, cf_err *err)
{
    size_t bytes = 0;
    char *text = file_read(path, max_bytes, &bytes, err);
    if (!text)
        return NULL;
    json_t *root = cf_json_parse(path, text, bytes, JSON_REJECT_DUPLICATES, max_values, err);
    free(text);
    if (root && !json_is_object(root)) {
        CF_FAIL(err, CF_EFORMAT, "%s is not a JSON object", path);
        json_decref(root);
        return NULL;
    }
    return root;
}
