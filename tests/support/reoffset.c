/* A checkpoint at other offsets: see reoffset.h. */
#include "tests/support/reoffset.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void give_up(const char *what, const char *path)
{
    perror(path);
    fprintf(stderr, "reoffset: cannot %s %s\n", what, path);
    exit(1);
}

static char *file_load(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || stat(path, &st) < 0)
        give_up("read", path);
    *bytes = (size_t)st.st_size;
    char *data = malloc(*bytes + 1);
    if (!data || fread(data, 1, *bytes, f) != *bytes)
        give_up("read", path);
    fclose(f);
    return data;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Header length (8 bytes, little endian; so is every machine here), header, data. */
static void shard_copy(const char *from, const char *to, unsigned mod)
{
    size_t bytes;
    uint64_t header;
    char *data = file_load(from, &bytes);
    memcpy(&header, data, sizeof header);
    size_t pad = (mod + 16 - (8 + header) % 16) % 16;
    uint64_t padded = header + pad;
    FILE *f = fopen(to, "wb");
    if (!f || header > bytes - 8)
        give_up("write", to);
    bool ok = fwrite(&padded, sizeof padded, 1, f) == 1 && fwrite(data + 8, header, 1, f) == 1 &&
              fprintf(f, "%*s", (int)pad, "") == (int)pad &&
              fwrite(data + 8 + header, bytes - 8 - header, 1, f) == 1;
    if (fclose(f) != 0 || !ok)
        give_up("write", to);
    free(data);
}

static void plain_copy(const char *from, const char *to)
{
    size_t bytes;
    char *data = file_load(from, &bytes);
    tmp_write(to, data, bytes);
    free(data);
}

static void dir_copy(const char *from, const char *to, int mod)
{
    DIR *d = opendir(from);
    if (!d || mkdir(to, 0755) < 0)
        give_up("copy to", to);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char source[1024], target[1024];
        snprintf(source, sizeof source, "%s/%s", from, e->d_name);
        snprintf(target, sizeof target, "%s/%s", to, e->d_name);
        if (mod >= 0 && ends_with(e->d_name, ".safetensors"))
            shard_copy(source, target, (unsigned)mod);
        else if (ends_with(e->d_name, ".safetensors") ||
                 (ends_with(e->d_name, ".json") && strcmp(e->d_name, "expected.json") != 0))
            plain_copy(source, target);
    }
    closedir(d);
}

void reoffset_copy(const char *from, const char *to, unsigned data_offset_mod_16)
{
    dir_copy(from, to, (int)data_offset_mod_16);
}

void model_copy(const char *from, const char *to)
{
    dir_copy(from, to, -1);
}
