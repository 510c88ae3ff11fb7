/* Files at the command line's edge: see text_io.h. */
#include "tools/text_io.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/catalogue.h"
#include "tools/tool.h"

int cf_text_read(const char *path, char **text, size_t *bytes, cf_err *err)
{
    int rc = 0;
    size_t len = 0, size = 65536;
    char *data = NULL;
    bool own = strcmp(path, "-") != 0;
    int fd = own ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (fd < 0)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, cf_err_name(-errno));
    for (;;) {
        if (!data || len == size) {
            size = data ? size * 2 : size;
            char *grown = realloc(data, size + 1);
            if (!grown)
                CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory reading %s", path));
            data = grown;
        }
        ssize_t n = read(fd, data + len, size - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            CF_TRY(CF_FAIL(err, -errno, "cannot read %s: %s", path, cf_err_name(-errno)));
        if (n == 0)
            break;
        len += (size_t)n;
        if (len > CF_TEXT_MAX_BYTES)
            CF_TRY(CF_FAIL(err, CF_ELIMIT, "%s is larger than the %d bytes that are read at most",
                           path, CF_TEXT_MAX_BYTES));
    }
    data[len] = 0;
    *text = data;
    *bytes = len;
    data = NULL;
fail:
    free(data);
    if (own)
        close(fd);
    return rc;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

int cf_ids_read(const char *path, int32_t **out, uint64_t *n_out, cf_err *err)
{
    char *text = NULL;
    size_t bytes;
    int32_t *ids = NULL;
    uint64_t n = 0, line = 1;
    int rc = cf_text_read(path, &text, &bytes, err);
    if (rc < 0)
        return rc;
    /* An id and the blank behind it take two bytes at least. */
    ids = malloc((bytes / 2 + 1) * sizeof *ids);
    if (!ids)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the ids of %s", path));
    for (const char *p = text, *end = text + bytes; p < end;) {
        if (is_blank(*p)) {
            line += *p++ == '\n';
            continue;
        }
        const char *word = p;
        uint64_t v = 0;
        while (p < end && *p >= '0' && *p <= '9' && v <= INT32_MAX)
            v = v * 10 + (uint64_t)(*p++ - '0');
        if (v > INT32_MAX || (p < end && !is_blank(*p))) {
            char raw[41], clean[41];
            snprintf(raw, sizeof raw, "%.*s", (int)strcspn(word, " \n\t\r\v\f"), word);
            CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s, line %" PRIu64 ": \"%s\" is not a token id",
                           path, line, cf_text_clean(raw, clean, sizeof clean)));
        }
        ids[n++] = (int32_t)v;
    }
    *out = ids;
    *n_out = n;
    ids = NULL;
fail:
    free(ids);
    free(text);
    return rc;
}

int cf_ids_check(const int32_t *ids, uint64_t n, uint32_t vocab, cf_err *err)
{
    for (uint64_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab)
            return CF_FAIL(err, -EINVAL,
                           "token id %" PRId32 " (number %" PRIu64
                           " of the list) is outside the vocabulary of %u: ids go from 0 to %u",
                           ids[i], i + 1, vocab, vocab - 1);
    return 0;
}

/* ---- outputs ---- */

/* Tensors, by the name. No command means to write statistics over those. */
static bool of_a_model(const char *path)
{
    static const char *const ends[] = {".safetensors", ".gguf"};
    size_t n = strlen(path);
    for (int i = 0; i < 2; i++)
        if (n >= strlen(ends[i]) && strcmp(path + n - strlen(ends[i]), ends[i]) == 0)
            return true;
    return false;
}

int cf_output_check(const char *path, cf_err *err)
{
    struct stat st;
    bool existed = stat(path, &st) == 0;
    if (existed && S_ISDIR(st.st_mode))
        return CF_FAIL(err, -EISDIR, "cannot write %s: it is a directory", path);
    if (existed && S_ISREG(st.st_mode) && of_a_model(path))
        return CF_FAIL(err, -EEXIST,
                       "cannot write %s: by its name that file of %lld bytes holds a model", path,
                       (long long)st.st_size);
    if (existed && !S_ISREG(st.st_mode)) { /* a pipe must not be opened twice */
        if (access(path, W_OK) < 0)
            return CF_FAIL(err, -errno, "cannot write %s: %s", path, cf_err_name(-errno));
        return 0;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return CF_FAIL(err, -errno, "cannot write %s: %s", path, cf_err_name(-errno));
    close(fd);
    if (!existed)
        unlink(path);
    return 0;
}

int cf_output_write(const char *path, const char *text, size_t bytes, cf_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return CF_FAIL(err, -errno, "cannot write %s: %s", path, cf_err_name(-errno));
    int rc = cf_write_all(fd, text, bytes);
    if (close(fd) < 0 && rc == 0)
        rc = -errno;
    if (rc < 0)
        CF_FAIL(err, rc, "writing %s failed: %s", path, cf_err_name(rc));
    return rc;
}

int cf_write_all(int fd, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes) {
        ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno == EAGAIN) { /* someone made the descriptor non-blocking */
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            if (poll(&wait, 1, -1) < 0 && errno != EINTR)
                return -errno;
            continue;
        }
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            p += n;
            bytes -= (size_t)n;
        }
    }
    return 0;
}

int cf_read_at(int fd, const char *path, uint64_t off, void *dst, uint64_t bytes, cf_err *err)
{
    uint8_t *p = dst;
    while (bytes) {
        ssize_t n = pread(fd, p, bytes, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return CF_FAIL(err, -errno, "reading %s at byte %" PRIu64 " failed: %s", path, off,
                           cf_err_name(-errno));
        if (n == 0)
            return CF_FAIL(err, CF_ECHANGED, "%s ends at byte %" PRIu64 ", %" PRIu64 " too early",
                           path, off, bytes);
        p += n;
        off += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

int cf_json_print(json_t *value)
{
    char *text = value ? json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    if (!text)
        return cf_tool_fail("out of memory for the JSON text");
    puts(text);
    free(text);
    return CF_EXIT_DONE;
}

const char *cf_plural(uint64_t n)
{
    return n == 1 ? "" : "s";
}
