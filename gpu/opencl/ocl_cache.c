/* The files of compiled programs: a magic, the key that they were built for, and our own checksum,
 * since a driver loads a damaged binary without a word.
 *
 * A file that is off in any way is ignored, one that cannot be written costs a slower next start:
 * no failure here is an error. Writing goes to a temporary name first. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gpu/opencl/ocl.h"

static const char cache_magic[8] = {'c', 'f', 'o', 'c', 'l', 'b', '0', '1'};
enum { CACHE_MAX_BYTES = 256 << 20, CACHE_KEY_SIZE = 1024 };

typedef struct cache_head {
    char magic[8];
    uint64_t bytes, checksum; /* the latter of key and content */
    char key[CACHE_KEY_SIZE]; /* padded with zeros */
} cache_head;

static uint64_t checksum(const cache_head *head, const void *data)
{
    return XXH3_64bits_withSeed(data, head->bytes, XXH3_64bits(head->key, sizeof head->key));
}

static bool head_fill(cache_head *head, const char *key, size_t bytes)
{
    *head = (cache_head){.bytes = bytes};
    memcpy(head->magic, cache_magic, sizeof cache_magic);
    int n = snprintf(head->key, sizeof head->key, "%s", key);
    return n > 0 && n < CACHE_KEY_SIZE && bytes > 0 && bytes <= CACHE_MAX_BYTES;
}

int ocl_cache_path(const char *key, char *path, size_t size)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool use_xdg = xdg && xdg[0] == '/';
    if (!use_xdg && (!home || home[0] != '/'))
        return -ENOENT;
    int n = snprintf(path, size, "%s%s/catflap/opencl-%016llx.bin", use_xdg ? xdg : home,
                     use_xdg ? "" : "/.cache", (unsigned long long)XXH3_64bits(key, strlen(key)));
    return n > 0 && (size_t)n < size ? 0 : -ENOENT;
}

bool ocl_cache_open(ocl_cache_file *file, const char *path, const char *key)
{
    struct stat st;
    cache_head want;
    *file = (ocl_cache_file){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &st) == 0 && (uint64_t)st.st_size > sizeof(cache_head)) {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map != MAP_FAILED) {
            file->map = map;
            file->map_bytes = (size_t)st.st_size;
        }
    }
    close(fd);
    if (!file->map)
        return false;
    const cache_head *head = file->map;
    file->data = (const uint8_t *)file->map + sizeof *head;
    file->bytes = file->map_bytes - sizeof *head;
    if (head_fill(&want, key, file->bytes) && head->bytes == file->bytes &&
        memcmp(head->magic, want.magic, sizeof want.magic) == 0 &&
        memcmp(head->key, want.key, sizeof want.key) == 0 &&
        checksum(head, file->data) == head->checksum)
        return true;
    ocl_cache_close(file);
    return false;
}

void ocl_cache_close(ocl_cache_file *file)
{
    if (file->map)
        munmap(file->map, file->map_bytes);
    *file = (ocl_cache_file){0};
}

static int make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int rc = mkdir(path, 0700);
        *slash = '/';
        if (rc < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

int ocl_cache_write(const char *path, const char *key, const void *data, size_t bytes)
{
    char temp[4096];
    cache_head head;
    if (!head_fill(&head, key, bytes) ||
        snprintf(temp, sizeof temp, "%s.%ld", path, (long)getpid()) >= (int)sizeof temp)
        return -EINVAL;
    head.checksum = checksum(&head, data);
    int rc = make_folders(temp);
    if (rc < 0)
        return rc;
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    FILE *f = fdopen(fd, "wb");
    if (!f) {
        close(fd);
        unlink(temp);
        return -ENOMEM;
    }
    bool ok = fwrite(&head, sizeof head, 1, f) == 1 && fwrite(data, 1, bytes, f) == bytes;
    ok = fclose(f) == 0 && ok;
    if (ok && rename(temp, path) == 0)
        return 0;
    unlink(temp);
    return -EIO;
}
