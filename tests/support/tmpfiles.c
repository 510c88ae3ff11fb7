/* Temporary files for tests: see tmpfiles.h. */
#include "tests/support/tmpfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void give_up(const char *what, const char *path)
{
    fprintf(stderr, "tmpfiles: cannot %s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

void tmp_dir_init(tmp_dir *dir)
{
    const char *base = getenv("TMPDIR");
    snprintf(dir->path, sizeof dir->path, "%s/catflap-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(dir->path))
        give_up("make", dir->path);
}

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void tmp_dir_finish(tmp_dir *dir)
{
    nftw(dir->path, entry_remove, 8, FTW_DEPTH | FTW_PHYS);
}

const char *tmp_path(const tmp_dir *dir, const char *name)
{
    static char paths[8][1024];
    static unsigned next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", dir->path, name);
    return p;
}

static void bytes_write(int fd, const char *path, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno != EINTR)
            give_up("write", path);
        done += n > 0 ? (size_t)n : 0;
    }
}

static int file_create(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        give_up("create", path);
    return fd;
}

static void file_finish(int fd, const char *path)
{
    if (fdatasync(fd) < 0 || close(fd) < 0)
        give_up("finish", path);
}

void tmp_write(const char *path, const void *data, size_t bytes)
{
    int fd = file_create(path);
    bytes_write(fd, path, data, bytes);
    file_finish(fd, path);
}

/* No period that is a multiple of a sector or a page: data from the wrong place differs. */
uint8_t tmp_pattern(uint64_t seed, uint64_t off)
{
    uint64_t z = (off + 1) * 0x9e3779b97f4a7c15u ^ (seed + 1) * 0xbf58476d1ce4e5b9u;
    return (uint8_t)((z ^ (z >> 29)) * 0x94d049bb133111ebu >> 56);
}

static void pattern_append(int fd, const char *path, uint64_t off, uint64_t bytes, uint64_t seed)
{
    static uint8_t block[1 << 16];
    while (bytes) {
        size_t n = bytes < sizeof block ? (size_t)bytes : sizeof block;
        for (size_t i = 0; i < n; i++)
            block[i] = tmp_pattern(seed, off + i);
        bytes_write(fd, path, block, n);
        off += n;
        bytes -= n;
    }
}

void tmp_write_pattern(const char *path, uint64_t bytes, uint64_t seed)
{
    int fd = file_create(path);
    pattern_append(fd, path, 0, bytes, seed);
    file_finish(fd, path);
}

void tmp_write_safetensors(const char *path, const char *header, uint64_t data_bytes)
{
    uint64_t n = strlen(header);
    uint8_t raw[8];
    for (int i = 0; i < 8; i++)
        raw[i] = (uint8_t)(n >> 8 * i);
    int fd = file_create(path);
    bytes_write(fd, path, raw, sizeof raw);
    bytes_write(fd, path, header, n);
    pattern_append(fd, path, sizeof raw + n, data_bytes, 0);
    file_finish(fd, path);
}

int64_t tmp_pattern_differs(const uint8_t *data, uint64_t bytes, uint64_t seed, uint64_t off)
{
    for (uint64_t i = 0; i < bytes; i++)
        if (data[i] != tmp_pattern(seed, off + i))
            return (int64_t)i;
    return -1;
}

bool tmp_files_equal(const char *a, const char *b)
{
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    static char x[1 << 16], y[1 << 16];
    size_t n = 1;
    bool same = f && g;
    while (same && n) {
        n = fread(x, 1, sizeof x, f);
        same = fread(y, 1, sizeof y, g) == n && memcmp(x, y, n) == 0;
    }
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return same;
}
