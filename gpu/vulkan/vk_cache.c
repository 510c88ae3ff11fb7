/* The pipeline cache file: what the driver compiled, kept between runs of a real GPU.
 *
 * Drivers check such data poorly, so the file carries a magic, its length and a checksum of our
 * own, and is ignored when anything is off. Writing goes to a temporary name first; a cache that
 * cannot be written is only a slower next start, so no failure here is an error. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/vulkan/vk.h"

static const char cache_magic[8] = {'c', 'f', 'v', 'k', 'c', 'h', '0', '1'};
enum { CACHE_MAX_BYTES = 256 << 20 };

typedef struct cache_head {
    char magic[8];
    uint64_t bytes, checksum;
} cache_head;

/* FNV-1a, 64 bits: against truncation and rot, not against an enemy in one's own home. */
static uint64_t checksum(const uint8_t *data, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ data[i]) * 0x100000001b3u;
    return h;
}

int vk_cache_path(const uint8_t uuid[VK_UUID_SIZE], uint32_t driver, char *path, size_t size)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool use_xdg = xdg && xdg[0] == '/';
    if (!use_xdg && (!home || home[0] != '/'))
        return -ENOENT;
    char hex[2 * VK_UUID_SIZE + 1];
    for (size_t i = 0; i < VK_UUID_SIZE; i++)
        snprintf(hex + 2 * i, 3, "%02x", uuid[i]);
    int n = snprintf(path, size, "%s%s/catflap/vulkan-%s-%08x.bin", use_xdg ? xdg : home,
                     use_xdg ? "" : "/.cache", hex, driver);
    return n > 0 && (size_t)n < size ? 0 : -ENOENT;
}

void *vk_cache_read(const char *path, size_t *bytes)
{
    cache_head head;
    uint8_t *data = NULL;
    FILE *f = fopen(path, "rbe");
    if (!f)
        return NULL;
    if (fread(&head, sizeof head, 1, f) == 1 &&
        memcmp(head.magic, cache_magic, sizeof cache_magic) == 0 && head.bytes > 0 &&
        head.bytes <= CACHE_MAX_BYTES)
        data = malloc(head.bytes);
    if (data && (fread(data, 1, head.bytes, f) != head.bytes ||
                 checksum(data, head.bytes) != head.checksum)) {
        free(data);
        data = NULL;
    }
    fclose(f);
    if (data)
        *bytes = head.bytes;
    return data;
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

int vk_cache_write(const char *path, const void *data, size_t bytes)
{
    char temp[4096];
    if (bytes == 0 || bytes > CACHE_MAX_BYTES ||
        snprintf(temp, sizeof temp, "%s.%ld", path, (long)getpid()) >= (int)sizeof temp)
        return -EINVAL;
    int rc = make_folders(temp);
    if (rc < 0)
        return rc;
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    cache_head head = {.bytes = bytes, .checksum = checksum(data, bytes)};
    memcpy(head.magic, cache_magic, sizeof head.magic);
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
