/* Files of a model: see model_file.h. They are untrusted: bounded, and never a pipe. */
#include "runtime/model_file.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/lfs.h"

static int file_read(const char *path, size_t max_bytes, char **text, size_t *bytes, cf_err *err)
{
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? 1
                   : CF_FAIL(err, -errno, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0)
        CF_TRY(CF_FAIL(err, -errno, "%s: %s", path, strerror(errno)));
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max_bytes)
        CF_TRY(CF_FAIL(err, CF_ELIMIT, "%s is not a file of at most %zu bytes", path, max_bytes));
    *text = malloc((size_t)st.st_size + 1);
    if (!*text)
        CF_TRY(CF_FAIL(err, -ENOMEM, "%s: out of memory", path));
    *bytes = 0;
    while (*bytes < (size_t)st.st_size) {
        ssize_t n = read(fd, *text + *bytes, (size_t)st.st_size - *bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            CF_TRY(CF_FAIL(err, -errno, "%s: %s", path, strerror(errno)));
        if (n == 0)
            break; /* shorter than it was: what is there decides */
        *bytes += (size_t)n;
    }
    (*text)[*bytes] = 0;
    CF_TRY(cf_lfs_refuse(path, *text, *bytes, *bytes, err));
fail:
    close(fd);
    if (rc < 0) {
        free(*text);
        *text = NULL;
    }
    return rc;
}

bool cf_model_file_packed(const cf_gguf *meta, const char *name, cf_text *text)
{
    char key[256];
    snprintf(key, sizeof key, CF_PACK_FILE_KEY "%s", name);
    return meta && cf_gguf_string(meta, key, text, NULL) == 1;
}

int cf_model_file_read(const char *dir, const cf_gguf *meta, const char *name, size_t max_bytes,
                       char **text, size_t *bytes, cf_err *err)
{
    char path[PATH_MAX];
    cf_text packed;
    *text = NULL;
    *bytes = 0;
    if (!cf_model_file_packed(meta, name, &packed)) {
        if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
            return CF_FAIL(err, -ENAMETOOLONG, "%s: the path is too long", dir);
        return file_read(path, max_bytes, text, bytes, err);
    }
    if (packed.bytes > max_bytes)
        return CF_FAIL(err, CF_ELIMIT, "%s has %llu bytes, at most %zu are allowed", name,
                       (unsigned long long)packed.bytes, max_bytes);
    if (!(*text = malloc(packed.bytes + 1)))
        return CF_FAIL(err, -ENOMEM, "out of memory for %s", name);
    memcpy(*text, packed.at, packed.bytes);
    (*text)[packed.bytes] = 0;
    *bytes = packed.bytes;
    return 0;
}
