/* A file under a temporary name: see part_file.h. */
#include "storage/part_file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/align.h"

enum {
    FLUSH_STEP_BYTES = 32 << 20, /* written back at a time, two steps at most in flight */
    WRITE_MAX_BYTES = 1 << 30,
    LOCK_TRIES = 16
};

void cf_part_discard(cf_part_file *f)
{
    if (f->fd >= 0) {
        unlink(f->temp); /* still locked: it is ours */
        close(f->fd);
    }
    free(f->path);
    free(f->temp);
    *f = (cf_part_file){.fd = -1};
}

/* Opens and locks the temporary file. Its last owner may have renamed it between the two: then the
 * name has to be opened anew. */
static int temp_lock(cf_part_file *f, cf_err *err)
{
    for (int i = 0; i < LOCK_TRIES; i++) {
        struct stat mine, named;
        f->fd = open(f->temp, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        if (f->fd < 0)
            return CF_FAIL(err, -errno, "cannot create %s: %s", f->temp, cf_err_name(-errno));
        int locked = flock(f->fd, LOCK_EX | LOCK_NB);
        /* Some file systems have no locks; then there is only the rename. */
        if (locked < 0 && errno == EWOULDBLOCK) {
            close(f->fd);
            f->fd = -1;
            return CF_FAIL(err, -EBUSY, "%s is being written by another process", f->temp);
        }
        if (fstat(f->fd, &mine) == 0 && stat(f->temp, &named) == 0 && mine.st_dev == named.st_dev &&
            mine.st_ino == named.st_ino)
            return 0;
        close(f->fd);
        f->fd = -1;
    }
    return CF_FAIL(err, -EBUSY, "%s keeps changing while it is opened", f->temp);
}

int cf_part_open(cf_part_file *f, const char *path, cf_err *err)
{
    *f = (cf_part_file){.fd = -1};
    int rc = 0;
    size_t size = strlen(path) + sizeof ".part";
    f->path = strdup(path);
    f->temp = malloc(size);
    if (!f->path || !f->temp)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", path));
    snprintf(f->temp, size, "%s.part", path);
    CF_TRY(temp_lock(f, err));
    if (ftruncate(f->fd, 0) < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot empty %s: %s", f->temp, cf_err_name(-errno)));
    return 0;
fail:
    cf_part_discard(f);
    return rc;
}

int cf_part_skip(cf_part_file *f, uint64_t bytes, cf_err *err)
{
    if (lseek(f->fd, (off_t)bytes, SEEK_SET) < 0)
        return CF_FAIL(err, -errno, "cannot write %s at byte %" PRIu64 ": %s", f->temp, bytes,
                       cf_err_name(-errno));
    f->written = bytes;
    f->flushed = cf_align_down(bytes, FLUSH_STEP_BYTES);
    return 0;
}

/* Starts writing back what has piled up and waits for the step before it. Where the file system
 * does not offer it, the sync at the end does it all. */
static void flush_ahead(cf_part_file *f)
{
    while (f->written - f->flushed >= FLUSH_STEP_BYTES) {
        sync_file_range(f->fd, (off_t)f->flushed, FLUSH_STEP_BYTES, SYNC_FILE_RANGE_WRITE);
        if (f->flushed >= FLUSH_STEP_BYTES) {
            off_t before = (off_t)(f->flushed - FLUSH_STEP_BYTES);
            sync_file_range(f->fd, before, FLUSH_STEP_BYTES,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER);
            posix_fadvise(f->fd, before, FLUSH_STEP_BYTES, POSIX_FADV_DONTNEED);
        }
        f->flushed += FLUSH_STEP_BYTES;
    }
}

int cf_part_write(cf_part_file *f, const void *data, uint64_t bytes, cf_err *err)
{
    const uint8_t *p = data;
    while (bytes) {
        size_t step = (size_t)cf_min_u64(bytes, WRITE_MAX_BYTES);
        ssize_t n = write(f->fd, p, step);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int code = n < 0 ? -errno : -ENOSPC;
            return CF_FAIL(err, code, "writing %s failed after %" PRIu64 " bytes: %s", f->path,
                           f->written, cf_err_name(code));
        }
        p += n;
        bytes -= (uint64_t)n;
        f->written += (uint64_t)n;
        flush_ahead(f);
    }
    return 0;
}

int cf_part_patch(cf_part_file *f, uint64_t off, const void *data, uint64_t bytes, cf_err *err)
{
    const uint8_t *p = data;
    while (bytes) {
        ssize_t n = pwrite(f->fd, p, (size_t)cf_min_u64(bytes, WRITE_MAX_BYTES), (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int code = n < 0 ? -errno : -ENOSPC;
            return CF_FAIL(err, code, "writing %s at byte %" PRIu64 " failed: %s", f->path, off,
                           cf_err_name(code));
        }
        p += n;
        off += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* A rename is on the drive when its directory is. */
static int directory_sync(const char *file_path, cf_err *err)
{
    char *dir = strdup(file_path);
    if (!dir)
        return CF_FAIL(err, -ENOMEM, "out of memory for the directory of %s", file_path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    const char *name = slash ? dir : ".";
    int rc = 0, fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
        rc = CF_FAIL(err, -errno, "cannot sync the directory %s: %s", name, cf_err_name(-errno));
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

int cf_part_commit(cf_part_file *f, cf_err *err)
{
    int rc = 0;
    if (fsync(f->fd) < 0)
        rc = CF_FAIL(err, -errno, "cannot sync %s: %s", f->path, cf_err_name(-errno));
    else if (rename(f->temp, f->path) < 0)
        rc = CF_FAIL(err, -errno, "cannot rename %s to %s: %s", f->temp, f->path,
                     cf_err_name(-errno));
    if (rc < 0) {
        cf_part_discard(f);
        return rc;
    }
    if (close(f->fd) < 0)
        rc = CF_FAIL(err, -errno, "cannot close %s: %s", f->path, cf_err_name(-errno));
    f->fd = -1;
    if (rc == 0)
        rc = directory_sync(f->path, err);
    cf_part_discard(f);
    return rc;
}

int cf_file_write_whole(const char *path, const void *data, uint64_t bytes, cf_err *err)
{
    cf_part_file f;
    int rc = cf_part_open(&f, path, err);
    if (rc < 0)
        return rc;
    rc = cf_part_write(&f, data, bytes, err);
    if (rc < 0) {
        cf_part_discard(&f);
        return rc;
    }
    return cf_part_commit(&f, err);
}
