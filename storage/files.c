/* The model's files: see files.h.
 *
 * Owns the descriptors. Direct or buffered is one decision for all files: a mixture would make
 * timings and statistics meaningless. The alignment is at least ALIGN_MIN and the largest that a
 * file asks for, in either mode. */
#include "storage/files.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ALIGN_MIN = 4096, ALIGN_MAX = 1 << 20 };

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

/* What STATX_DIOALIGN says of a file: the larger of its two alignments; 0 when direct I/O is not
 * supported on it; -1 when the kernel or the file system does not say. */
static int64_t file_dio_align(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) < 0 || !(sx.stx_mask & STATX_DIOALIGN))
        return -1;
    if (!sx.stx_dio_offset_align || !sx.stx_dio_mem_align)
        return 0;
    return sx.stx_dio_offset_align > sx.stx_dio_mem_align ? sx.stx_dio_offset_align
                                                          : sx.stx_dio_mem_align;
#else
    (void)fd;
    return -1;
#endif
}

/* Opens one file into *f. With `direct`, returns 1 and leaves f closed where O_DIRECT is refused.
 * O_NONBLOCK: a pipe in its place must not hang us. */
static int file_open(cf_files *files, cf_file *f, const char *path, bool direct, cf_err *err)
{
    struct stat st;
    int rc = 0;
    *f = (cf_file){.fd = -1};
    f->path = strdup(path);
    if (!f->path)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", path));
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (direct ? O_DIRECT : 0));
    if (f->fd < 0 && direct && (errno == EINVAL || errno == EOPNOTSUPP)) {
        snprintf(files->direct_why, sizeof files->direct_why, "%s: O_DIRECT refused: %s", path,
                 strerror(errno));
        CF_TRY(-EOPNOTSUPP);
    }
    if (f->fd < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot open %s: %s", path, strerror(errno)));
    if (fstat(f->fd, &st) < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot stat %s: %s", path, strerror(errno)));
    if (!S_ISREG(st.st_mode))
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s is not a regular file", path));
    int64_t align = file_dio_align(f->fd);
    bool odd = align > ALIGN_MAX || (align > 0 && (align & (align - 1)));
    if (direct && (align == 0 || odd)) {
        snprintf(files->direct_why, sizeof files->direct_why, "%s: %s (alignment %" PRId64 ")",
                 path, odd ? "unusable direct I/O" : "no direct I/O on this file", align);
        CF_TRY(-EOPNOTSUPP);
    }
    if (!odd && align > (int64_t)files->align)
        files->align = (uint32_t)align;
    f->bytes = (uint64_t)st.st_size;
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->mtime_ns = mtime_ns(&st);
    return 0;
fail:
    free(f->path);
    if (f->fd >= 0)
        close(f->fd);
    *f = (cf_file){.fd = -1};
    return direct && rc == -EOPNOTSUPP && files->direct_why[0] ? 1 : rc;
}

static void list_close(cf_files *files)
{
    for (uint32_t i = 0; i < files->count; i++) {
        free(files->list[i].path);
        close(files->list[i].fd);
    }
    files->count = 0;
}

int cf_files_open(cf_files *files, const char *const *paths, uint32_t count, bool direct,
                  cf_err *err)
{
    *files = (cf_files){.align = ALIGN_MIN, .direct = direct};
    files->list = calloc(count ? count : 1, sizeof *files->list);
    if (!files->list)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u files", count);
    while (files->count < count) {
        uint32_t i = files->count;
        int rc = file_open(files, &files->list[i], paths[i], files->direct, err);
        if (rc < 0) {
            cf_files_close(files);
            return rc;
        }
        if (rc == 0) {
            files->count++;
        } else { /* direct refused: all of them again, buffered */
            list_close(files);
            files->direct = false;
        }
    }
    return 0;
}

void cf_files_close(cf_files *files)
{
    list_close(files);
    free(files->list);
    *files = (cf_files){0};
}

int cf_files_check(const cf_files *files, uint32_t file, cf_err *err)
{
    cf_assert(file < files->count);
    const cf_file *f = &files->list[file];
    struct stat by_path, by_fd;
    if (stat(f->path, &by_path) < 0)
        return CF_FAIL(err, CF_ECHANGED, "%s disappeared while in use: %s", f->path,
                       strerror(errno));
    if (fstat(f->fd, &by_fd) < 0)
        return CF_FAIL(err, CF_ECHANGED, "%s: its descriptor failed while in use: %s", f->path,
                       strerror(errno));
    if (by_path.st_dev != f->dev || by_path.st_ino != f->ino)
        return CF_FAIL(err, CF_ECHANGED,
                       "%s was replaced while in use: inode %" PRIu64 " when opened, now %" PRIu64,
                       f->path, (uint64_t)f->ino, (uint64_t)by_path.st_ino);
    if ((uint64_t)by_fd.st_size != f->bytes)
        return CF_FAIL(err, CF_ECHANGED,
                       "%s changed while in use: %" PRIu64 " bytes when opened, now %" PRIu64,
                       f->path, f->bytes, (uint64_t)by_fd.st_size);
    if (mtime_ns(&by_fd) != f->mtime_ns)
        return CF_FAIL(err, CF_ECHANGED,
                       "%s was rewritten while in use: its modification time "
                       "moved by %" PRId64 " ns",
                       f->path, mtime_ns(&by_fd) - f->mtime_ns);
    return 0;
}
