/* Tensors in slices: see safetensors_slices.h.
 *
 * Each rank gets a catalogue of its own, by the same reader and with the same checks as any file;
 * then the ranks are laid side by side. Names are untrusted, and cleaned in messages. */
#include "storage/safetensors_slices.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/catalogue_build.h"
#include "storage/safetensors.h"

enum { RANKS_MAX = 64, COMMON = RANKS_MAX, PARTS, NAME_TEXT = 128, SHAPE_TEXT = 200 };

int cf_safetensors_rank(const char *name)
{
    static const char end[] = ".safetensors", mark[] = "-TP-", common[] = "common";
    const char *at = NULL;
    for (const char *next = name; (next = strstr(next, mark)); at = next)
        next += sizeof mark - 1;
    if (!at)
        return -2;
    size_t digits = strspn(at, "0123456789");
    if (strncmp(at, common, sizeof common - 1) == 0 && strcmp(at + sizeof common - 1, end) == 0)
        return -1;
    if (!digits || digits > 6 || strcmp(at + digits, end) != 0)
        return -2;
    return (int)strtol(at, NULL, 10);
}

/* The catalogues of the ranks and of what is common; of their files, the first's new number. */
struct parts {
    cf_catalogue *cat[PARTS]; /* NULL: there is none */
    uint32_t first_file[PARTS];
    uint32_t n_ranks;
};

/* ---- files ---- */

static int name_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_free(char **names, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

/* The *.safetensors of a directory, sorted. */
static int names_list(const char *dir, char ***out, uint32_t *count, cf_err *err)
{
    static const char end[] = ".safetensors";
    char **names = NULL, **more;
    uint32_t n = 0;
    int rc = 0;
    DIR *d = opendir(dir);
    if (!d)
        return CF_FAIL(err, -errno, "cannot open the directory %s: %s", dir, strerror(errno));
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        size_t bytes = strlen(e->d_name);
        if (bytes < sizeof end || strcmp(e->d_name + bytes - (sizeof end - 1), end) != 0)
            continue;
        more = realloc(names, (n + 1) * sizeof *names);
        if (more)
            names = more;
        if (n == CF_MAX_FILES)
            rc = CF_FAIL(err, CF_ELIMIT, "%s: more than %d files", dir, (int)CF_MAX_FILES);
        else if (!more || !(names[n] = strdup(e->d_name)))
            rc = CF_FAIL(err, -ENOMEM, "out of memory for the names of %u files", n + 1);
        else
            n++;
    }
    closedir(d);
    if (rc < 0) {
        names_free(names, n);
        return rc;
    }
    if (n)
        qsort(names, n, sizeof *names, name_order);
    *out = names;
    *count = n;
    return 0;
}

static int file_load(struct parts *p, const char *dir, const char *name, cf_err *err)
{
    char *path, text[NAME_TEXT];
    int rank = cf_safetensors_rank(name);
    cf_text_clean(name, text, sizeof text);
    if (rank < -1)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s holds slices (*-TP-000.safetensors), and %s, which is no file of theirs",
                       dir, text);
    if (rank >= RANKS_MAX)
        return CF_FAIL(err, CF_ELIMIT, "%s/%s: rank %d, at most %d ranks are read", dir, text, rank,
                       (int)RANKS_MAX);
    if (asprintf(&path, "%s/%s", dir, name) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for a path in %s", dir);
    cf_catalogue **cat = &p->cat[rank < 0 ? COMMON : rank];
    int rc = cf_safetensors_load(cat, *cat ? cf_catalogue_file_count(*cat) : 0, path, err);
    free(path);
    if (rank >= 0 && (uint32_t)rank >= p->n_ranks)
        p->n_ranks = (uint32_t)rank + 1;
    return rc;
}

static int parts_load(struct parts *p, const char *dir, cf_err *err)
{
    char **names = NULL;
    uint32_t n = 0;
    int rc = names_list(dir, &names, &n, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = file_load(p, dir, names[i], err);
    names_free(names, n);
    if (rc == 0 && !p->n_ranks)
        return CF_FAIL(err, CF_EFORMAT, "%s holds no file *-TP-000.safetensors", dir);
    for (uint32_t r = 0; r < p->n_ranks && rc == 0; r++)
        if (!p->cat[r])
            rc = CF_FAIL(err, CF_EFORMAT,
                         "%s holds slices up to *-TP-%03u.safetensors, and none in a file "
                         "*-TP-%03u.safetensors",
                         dir, p->n_ranks - 1, r);
    return rc;
}

/* ---- side by side ---- */

static const char *path_of(const struct parts *p, uint32_t part, const cf_tensor *t)
{
    return cf_catalogue_path(p->cat[part], t->extent.file);
}

/* A tensor of rank 0 in rank r: there, and alike. */
static int slice_find(const struct parts *p, const cf_tensor *t, uint32_t r, const cf_tensor **out,
                      cf_err *err)
{
    char name[NAME_TEXT], a[SHAPE_TEXT], b[SHAPE_TEXT];
    int64_t at = cf_catalogue_find(p->cat[r], t->name);
    cf_text_clean(t->name, name, sizeof name);
    if (at < 0)
        return CF_FAIL(err, CF_EFORMAT,
                       "tensor \"%s\" has a slice in %s, but none in a file *-TP-%03u.safetensors",
                       name, path_of(p, 0, t), r);
    const cf_tensor *s = *out = cf_catalogue_at(p->cat[r], (uint32_t)at);
    if (s->format == t->format && s->n_dims == t->n_dims &&
        memcmp(s->shape, t->shape, t->n_dims * sizeof *t->shape) == 0)
        return 0;
    return CF_FAIL(err, CF_EFORMAT, "the slices of tensor \"%s\" differ: %s %s in %s, %s %s in %s",
                   name, cf_format_name(t->format), cf_tensor_shape_text(t, a, sizeof a),
                   path_of(p, 0, t), cf_format_name(s->format),
                   cf_tensor_shape_text(s, b, sizeof b), path_of(p, r, s));
}

/* Every tensor that any rank has, rank 0 has. */
static int rank_check(const struct parts *p, uint32_t r, cf_err *err)
{
    char name[NAME_TEXT];
    for (uint32_t i = 0; i < cf_catalogue_count(p->cat[r]); i++) {
        const cf_tensor *t = cf_catalogue_at(p->cat[r], i);
        if (cf_catalogue_find(p->cat[0], t->name) < 0)
            return CF_FAIL(
                err, CF_EFORMAT,
                "tensor \"%s\" has a slice in %s, but none in a file *-TP-000.safetensors",
                cf_text_clean(t->name, name, sizeof name), path_of(p, r, t));
    }
    return 0;
}

static int files_add(struct parts *p, uint32_t part, cf_catalogue *to, cf_err *err)
{
    const cf_catalogue *from = p->cat[part];
    int rc = 0;
    p->first_file[part] = cf_catalogue_file_count(to);
    for (uint32_t i = 0; i < cf_catalogue_file_count(from) && rc == 0; i++)
        rc = cf_catalogue_add_file(to, cf_catalogue_path(from, i), cf_catalogue_file_bytes(from, i),
                                   err);
    return rc;
}

static cf_extent extent_in(const struct parts *p, uint32_t part, const cf_tensor *t)
{
    cf_extent e = t->extent;
    e.file += p->first_file[part];
    return e;
}

static int tensor_add(const struct parts *p, uint32_t i, cf_catalogue *to, cf_err *err)
{
    const cf_tensor *first = cf_catalogue_at(p->cat[0], i), *slice = NULL;
    cf_extent slices[RANKS_MAX];
    cf_tensor t = *first;
    int rc = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        CF_TRY(slice_find(p, first, r, &slice, err));
        slices[r] = extent_in(p, r, slice);
    }
    t.extent = slices[0];
    if (p->n_ranks > 1) {
        t.n_slices = p->n_ranks;
        t.slices = slices;
    }
    CF_TRY(cf_catalogue_add(to, &t, err));
fail:
    return rc;
}

static int parts_join(struct parts *p, cf_catalogue *to, cf_err *err)
{
    const cf_catalogue *common = p->cat[COMMON];
    int rc = 0;
    if (common)
        CF_TRY(files_add(p, COMMON, to, err));
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        CF_TRY(rank_check(p, r, err));
        CF_TRY(files_add(p, r, to, err));
    }
    for (uint32_t i = 0; common && i < cf_catalogue_count(common); i++) {
        cf_tensor t = *cf_catalogue_at(common, i);
        t.extent = extent_in(p, COMMON, &t);
        CF_TRY(cf_catalogue_add(to, &t, err));
    }
    for (uint32_t i = 0; i < cf_catalogue_count(p->cat[0]); i++)
        CF_TRY(tensor_add(p, i, to, err));
fail:
    return rc;
}

int cf_safetensors_slices_join(cf_catalogue **out, cf_catalogue *const *ranks, uint32_t n_ranks,
                               cf_catalogue *common, cf_err *err)
{
    struct parts p = {.n_ranks = n_ranks};
    cf_catalogue *to = NULL;
    int rc = 0;
    cf_assert(n_ranks && n_ranks <= RANKS_MAX);
    for (uint32_t r = 0; r < n_ranks; r++)
        p.cat[r] = ranks[r];
    p.cat[COMMON] = common;
    CF_TRY(cf_catalogue_create(&to, err));
    CF_TRY(parts_join(&p, to, err));
    *out = to;
    return 0;
fail:
    cf_catalogue_close(&to);
    return rc;
}

int cf_safetensors_slices_open(cf_catalogue **out, const char *dir, cf_err *err)
{
    struct parts p = {0};
    int rc = 0;
    CF_TRY(parts_load(&p, dir, err));
    CF_TRY(cf_safetensors_slices_join(out, p.cat, p.n_ranks, p.cat[COMMON], err));
fail:
    for (uint32_t i = 0; i < PARTS; i++)
        cf_catalogue_close(&p.cat[i]);
    return rc;
}
