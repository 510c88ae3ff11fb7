/* A file in memory, for readers that take a path: written anew for each input. */
#ifndef CF_TESTS_FUZZ_MEMORY_FILE_H
#define CF_TESTS_FUZZ_MEMORY_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void check(bool ok)
{
    if (!ok)
        abort();
}

typedef struct memory_file {
    int fd;
    char path[64];
} memory_file;

static inline void memory_file_write(const memory_file *f, const void *data, size_t n)
{
    check(n == 0 || write(f->fd, data, n) == (ssize_t)n);
}

static inline memory_file memory_file_make(const void *data, size_t n)
{
    memory_file f = {.fd = memfd_create("input", MFD_CLOEXEC)};
    check(f.fd >= 0);
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", f.fd);
    memory_file_write(&f, data, n);
    return f;
}

/* A sentence: there when something failed, and fit to be shown. */
static inline void sentence_check(int rc, const char *msg)
{
    check((rc < 0) == (msg[0] != 0));
    for (const char *c = msg; *c; c++)
        check((unsigned char)*c >= ' ' && *c != 0x7f);
}

#endif
