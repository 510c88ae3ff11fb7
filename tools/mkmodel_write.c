/* Writing a whole checkpoint directory: see mkmodel_write.h.
 *
 * Threads: the main thread plans buffers and runs the pool that fills them; the writer thread
 * appends the buffer before. They meet at one job slot under one mutex. */
#include "tools/mkmodel_write.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/threads.h"
#include "tools/progress.h"
#include "tools/tool.h"

enum { BUFFER_BYTES = 8 << 20, PIECE_BYTES = 256 << 10, MAX_PIECES = 512, ELEMENT_MAX = 8 };

/* Part of one tensor in a buffer. */
typedef struct piece {
    uint32_t tensor;
    uint64_t off, bytes, at;
} piece;

typedef struct filling {
    const cf_checkpoint *c;
    uint8_t *buffer;
    piece pieces[MAX_PIECES];
    uint32_t n_pieces;
    uint64_t bytes;
    /* The first failure of the pool. */
    pthread_mutex_t lock;
    int status;
    cf_err err;
} filling;

typedef struct writer {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    /* The job: file is NULL while there is none. */
    cf_safetensors_writer *file;
    const uint8_t *data;
    uint64_t bytes;
    int status;
    cf_err err;
} writer;

typedef struct production {
    const cf_checkpoint *c;
    const char *dir;
    cf_threads *threads;
    writer writer;
    bool writer_started;
    filling filling;
    uint8_t *buffers[2];
    int which;
    uint64_t done_bytes;
    cf_progress progress;
} production;

/* ---- the writer thread ---- */

static void *writer_main(void *p)
{
    writer *w = p;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        if (!w->file) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        cf_err err = {0};
        int rc = cf_safetensors_append(w->file, w->data, w->bytes, &err);
        pthread_mutex_lock(&w->lock);
        if (rc < 0 && w->status == 0) {
            w->status = rc;
            w->err = err;
        }
        w->file = NULL;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Waits for the job before. */
static int writer_wait(writer *w, cf_err *err)
{
    pthread_mutex_lock(&w->lock);
    while (w->file)
        pthread_cond_wait(&w->changed, &w->lock);
    int rc = w->status;
    pthread_mutex_unlock(&w->lock);
    return rc < 0 ? CF_FAIL(err, rc, "%s", w->err.msg) : 0;
}

static void writer_put(writer *w, cf_safetensors_writer *file, const uint8_t *data, uint64_t bytes)
{
    pthread_mutex_lock(&w->lock);
    w->data = data;
    w->bytes = bytes;
    w->file = file;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* ---- filling a buffer ---- */

static void pieces_fill(void *arg, uint64_t begin, uint64_t end)
{
    filling *f = arg;
    for (uint64_t i = begin; i < end; i++) {
        const piece *p = &f->pieces[i];
        cf_err err = {0};
        int rc = f->c->source(f->c->user, p->tensor, p->off, f->buffer + p->at, p->bytes, &err);
        if (rc < 0) {
            pthread_mutex_lock(&f->lock);
            if (f->status == 0) {
                f->status = rc;
                f->err = err;
            }
            pthread_mutex_unlock(&f->lock);
        }
    }
}

/* Plans pieces from (*tensor, *off) on, up to `end` or until the buffer is full. */
static void pieces_plan(filling *f, uint32_t *tensor, uint64_t *off, uint32_t end)
{
    f->n_pieces = 0;
    f->bytes = 0;
    while (*tensor < end && f->n_pieces < MAX_PIECES) {
        uint64_t all = 0;
        cf_tensor_spec_bytes(&f->c->list[*tensor], &all);
        uint64_t left = all - *off, room = BUFFER_BYTES - f->bytes;
        uint64_t n = cf_min_u64(left, PIECE_BYTES);
        if (n > room)
            n = room - room % ELEMENT_MAX;
        if (left && n == 0)
            return;
        if (n)
            f->pieces[f->n_pieces++] = (piece){*tensor, *off, n, f->bytes};
        f->bytes += n;
        *off += n;
        if (*off == all) {
            ++*tensor;
            *off = 0;
        }
    }
}

/* ---- shards ---- */

static int shard_data(production *p, cf_safetensors_writer *file, uint32_t begin, uint32_t end,
                      cf_err *err)
{
    uint32_t tensor = begin;
    uint64_t off = 0;
    filling *f = &p->filling;
    int rc = 0;
    while (rc == 0 && tensor < end) {
        if (cf_interrupted())
            rc = CF_FAIL(err, -ECANCELED, "interrupted");
        if (rc < 0)
            break;
        f->buffer = p->buffers[p->which];
        p->which = !p->which;
        pieces_plan(f, &tensor, &off, end);
        cf_threads_run(p->threads, f->n_pieces, 1, pieces_fill, f);
        if (f->status < 0)
            rc = CF_FAIL(err, f->status, "%s", f->err.msg);
        int written = writer_wait(&p->writer, err);
        rc = rc < 0 ? rc : written;
        if (rc == 0 && f->bytes)
            writer_put(&p->writer, file, f->buffer, f->bytes);
        p->done_bytes += f->bytes;
        cf_progress_update(&p->progress, p->done_bytes);
    }
    int last = writer_wait(&p->writer, err);
    return rc < 0 ? rc : last;
}

static int shard_write(production *p, uint32_t shard, uint32_t begin, uint32_t end, cf_err *err)
{
    char name[64];
    const cf_checkpoint *c = p->c;
    cf_safetensors_writer *file = NULL;
    cf_safetensors_shard_name(shard, c->n_shards, name, sizeof name);
    size_t size = strlen(p->dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (!path)
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of shard %u", shard + 1);
    snprintf(path, size, "%s/%s", p->dir, name);
    int rc = cf_safetensors_create(&file, path, c->list + begin, end - begin, c->data_offset, err);
    if (rc == 0)
        rc = shard_data(p, file, begin, end, err);
    if (rc == 0)
        rc = cf_safetensors_commit(&file, err);
    cf_safetensors_abandon(&file);
    free(path);
    return rc;
}

static int production_begin(production *p, const cf_checkpoint *c, const char *dir, cf_err *err)
{
    p->c = c;
    p->dir = dir;
    p->filling.c = c;
    pthread_mutex_init(&p->filling.lock, NULL);
    pthread_mutex_init(&p->writer.lock, NULL);
    pthread_cond_init(&p->writer.changed, NULL);
    for (int i = 0; i < 2; i++)
        if (!(p->buffers[i] = malloc(BUFFER_BYTES)))
            return CF_FAIL(err, -ENOMEM, "out of memory for a buffer of %d bytes", BUFFER_BYTES);
    int rc = cf_threads_create(&p->threads, 0, err);
    if (rc < 0)
        return rc;
    rc = -pthread_create(&p->writer.thread, NULL, writer_main, &p->writer);
    if (rc < 0)
        return CF_FAIL(err, rc, "cannot start the writing thread: %s", cf_err_name(rc));
    p->writer_started = true;
    return 0;
}

static void production_end(production *p)
{
    if (p->writer_started) {
        pthread_mutex_lock(&p->writer.lock);
        p->writer.stop = true;
        pthread_cond_broadcast(&p->writer.changed);
        pthread_mutex_unlock(&p->writer.lock);
        pthread_join(p->writer.thread, NULL);
    }
    cf_threads_destroy(&p->threads);
    pthread_cond_destroy(&p->writer.changed);
    pthread_mutex_destroy(&p->writer.lock);
    pthread_mutex_destroy(&p->filling.lock);
    free(p->buffers[0]);
    free(p->buffers[1]);
}

int cf_checkpoint_write(const cf_checkpoint *c, const char *dir, cf_err *err)
{
    production *p = calloc(1, sizeof *p);
    if (!p)
        return CF_FAIL(err, -ENOMEM, "out of memory for writing a checkpoint");
    int rc = production_begin(p, c, dir, err);
    cf_progress_begin(&p->progress, "writing", c->data_bytes, false);
    for (uint32_t begin = 0, end = 0; rc == 0 && begin < c->n; begin = end) {
        while (end < c->n && c->shard_of[end] == c->shard_of[begin])
            end++;
        rc = shard_write(p, c->shard_of[begin], begin, end, err);
    }
    cf_progress_end(&p->progress);
    production_end(p);
    free(p);
    if (rc == 0 && c->n_shards > 1)
        rc = cf_safetensors_write_index(dir, c->list, c->n, c->shard_of, c->n_shards, err);
    return rc;
}

/* ---- the directory ---- */

/* Removes the files of a directory (there are no folders in a checkpoint). */
static int directory_empty(const char *path, cf_err *err)
{
    DIR *dir = opendir(path);
    if (!dir)
        return CF_FAIL(err, -errno, "cannot open %s: %s", path, cf_err_name(-errno));
    int rc = 0;
    struct dirent *entry;
    while (rc == 0 && (entry = readdir(dir))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (unlinkat(dirfd(dir), entry->d_name, 0) < 0)
            rc = CF_FAIL(err, -errno, "cannot remove %s/%s: %s", path, entry->d_name,
                         cf_err_name(-errno));
    }
    closedir(dir);
    return rc;
}

static int target_check(const char *path, cf_err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return errno == ENOENT
                   ? 0
                   : CF_FAIL(err, -errno, "cannot use %s: %s", path, cf_err_name(-errno));
    DIR *dir = S_ISDIR(st.st_mode) ? opendir(path) : NULL;
    if (!dir)
        return CF_FAIL(err, -EEXIST, "%s exists and is not an empty directory", path);
    int n = 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    if (n > 2)
        return CF_FAIL(err, -EEXIST, "%s exists and holds %d files: choose another name", path,
                       n - 2);
    return 0;
}

int cf_partial_dir_begin(cf_partial_dir *d, const char *path, cf_err *err)
{
    int rc = 0;
    *d = (cf_partial_dir){.lock = -1};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    d->path = strndup(path, n);
    char *temp = malloc(n + sizeof ".partial");
    if (!d->path || !temp) {
        free(temp);
        return CF_FAIL(err, -ENOMEM, "out of memory for the name of %s", path);
    }
    snprintf(temp, n + sizeof ".partial", "%.*s.partial", (int)n, path);
    CF_TRY(target_check(d->path, err));
    if (mkdir(temp, 0777) < 0 && errno != EEXIST)
        CF_TRY(CF_FAIL(err, -errno, "cannot create %s: %s", temp, cf_err_name(-errno)));
    d->lock = open(temp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->lock < 0)
        CF_TRY(CF_FAIL(err, -errno, "cannot open %s: %s", temp, cf_err_name(-errno)));
    if (flock(d->lock, LOCK_EX | LOCK_NB) < 0)
        CF_TRY(CF_FAIL(err, -errno, "%s is being written by another process", temp));
    d->temp = temp; /* ours from here on, to be removed */
    return directory_empty(temp, err);
fail:
    free(temp);
    return rc;
}

int cf_partial_dir_commit(cf_partial_dir *d, cf_err *err)
{
    if (fsync(d->lock) < 0)
        return CF_FAIL(err, -errno, "cannot sync %s: %s", d->temp, cf_err_name(-errno));
    if (rename(d->temp, d->path) < 0)
        return CF_FAIL(err, -errno, "cannot rename %s to %s: %s", d->temp, d->path,
                       cf_err_name(-errno));
    free(d->temp);
    d->temp = NULL;
    char *slash = strrchr(d->path, '/');
    char *parent =
        slash ? strndup(d->path, slash == d->path ? 1 : (size_t)(slash - d->path)) : strdup(".");
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int rc = 0;
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
        rc = CF_FAIL(err, -errno, "cannot sync the directory of %s: %s", d->path,
                     cf_err_name(-errno));
    if (fd >= 0)
        close(fd);
    free(parent);
    return rc;
}

void cf_partial_dir_finish(cf_partial_dir *d)
{
    if (d->temp) {
        directory_empty(d->temp, NULL);
        rmdir(d->temp);
    }
    if (d->lock >= 0)
        close(d->lock);
    free(d->temp);
    free(d->path);
    *d = (cf_partial_dir){.lock = -1};
}
