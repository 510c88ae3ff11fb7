/* Routing traces in memory: see trace_read.h. */
#include "runtime/trace_read.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/trace_source.h"

enum {
    MAX_ROW_BYTES = 64 + CF_TRACE_MAX_K * 40,
    MAX_LAYER = 4095,
    FIRST_ROW_LINE = 3,
    MAX_KEYS = 1 << 22 /* MoE layers times experts */
};
#define MAX_IDS (1ull << 29)

typedef struct reader {
    cf_routing *t;
    const char *name;
    cf_lines *lines;
    uint64_t rows_size, ids_size, groups_size, chunks_size;
    bool weights, given_zero;
    uint8_t *mark; /* [n_experts] */
    uint32_t moe_of[MAX_LAYER + 1];
} reader;

/* Room for `need` elements of `each` bytes. */
static int grow(void **list, uint64_t *size, uint64_t need, size_t each, cf_err *err)
{
    if (need <= *size)
        return 0;
    uint64_t more = *size ? *size * 2 : 1024;
    more = more < need ? need : more;
    void *grown = realloc(*list, more * each);
    if (!grown)
        return CF_FAIL(err, -ENOMEM, "out of memory for a trace of %llu entries",
                       (unsigned long long)need);
    *list = grown;
    *size = more;
    return 0;
}

/* ---- the header ---- */

static int header_number(const reader *r, const json_t *o, const char *key, uint32_t min,
                         uint32_t max, uint32_t *out, cf_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 0;
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < min || n > max)
        return CF_FAIL(err, CF_EFORMAT, "%s, line 1: \"%s\" must be a number from %u to %u",
                       r->name, key, min, max);
    *out = (uint32_t)n;
    return 0;
}

static void header_text(const json_t *o, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(o, key));
    size_t n = text ? strlen(text) : 0;
    n = n < size ? n : size - 1;
    if (n)
        memcpy(out, text, n);
    out[n] = 0;
}

static int header_parse(reader *r, const char *line, size_t n, cf_err *err)
{
    int rc = 0;
    json_error_t why;
    cf_trace_header *h = &r->t->header;
    json_t *o = NULL;
    if (n == 0 || line[0] != '#')
        return CF_FAIL(err, CF_EFORMAT, "%s, line 1: a trace begins with # and a JSON object",
                       r->name);
    o = json_loadb(line + 1, n - 1, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(o))
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s, line 1: %s%s", r->name,
                       o ? "the header is not a JSON object"
                         : "a trace begins with # and a JSON object, and here: ",
                       o ? "" : why.text));
    CF_TRY(header_number(r, o, "n_layers", 0, MAX_LAYER + 1, &h->n_layers, err));
    CF_TRY(header_number(r, o, "n_experts", 1, CF_TRACE_MAX_EXPERTS, &h->n_experts, err));
    CF_TRY(header_number(r, o, "zero_experts", 0, CF_TRACE_MAX_EXPERTS, &h->zero_experts, err));
    CF_TRY(header_number(r, o, "top_k", 1, CF_TRACE_MAX_K, &h->top_k, err));
    CF_TRY(header_number(r, o, "chunk", 0, 1 << 16, &h->chunk, err));
    CF_TRY(header_number(r, o, "slots", 0, UINT32_MAX - 1, &h->slots, err));
    CF_TRY(header_number(r, o, "slabs", 0, UINT32_MAX - 1, &h->slabs, err));
    CF_TRY(header_number(r, o, "guess_slots", 0, UINT32_MAX - 1, &h->guess_slots, err));
    if (!h->n_experts)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s, line 1: the header lacks \"n_experts\"", r->name));
    r->given_zero = json_object_get(o, "zero_experts") != NULL;
    header_text(o, "model", h->model, sizeof h->model);
    header_text(o, "policy", h->policy, sizeof h->policy);
    const char *order = json_string_value(json_object_get(o, "order"));
    h->warm = json_is_true(json_object_get(o, "history"));
    h->plan_order = order && strcmp(order, "plan") == 0;
fail:
    json_decref(o);
    return rc;
}

/* ---- rows ---- */

static int row_refuse(const reader *r, const char *what, cf_err *err)
{
    return CF_FAIL(err, CF_EFORMAT, "%s, line %llu: %s", r->name,
                   (unsigned long long)cf_lines_number(r->lines), what);
}

/* Digits up to `max`, then `end`; *p moves behind it. */
static bool number_take(const char **p, uint32_t max, char end, uint32_t *out)
{
    const char *s = *p;
    uint64_t v = 0;
    if (*s < '0' || *s > '9')
        return false;
    while (*s >= '0' && *s <= '9' && v <= max)
        v = v * 10 + (uint64_t)(*s++ - '0');
    if (v > max || (end && *s != end))
        return false;
    *out = (uint32_t)v;
    *p = s + (end ? 1 : 0);
    return true;
}

/* Ids up to the comma, which is taken; none is a list too. */
static bool ids_take(const char **p, uint32_t *ids, uint32_t *n)
{
    *n = 0;
    if (**p == ',') {
        ++*p;
        return true;
    }
    for (;;) {
        if (*n == CF_TRACE_MAX_K || !number_take(p, UINT16_MAX, 0, &ids[*n]))
            return false;
        ++*n;
        if (**p != ' ' && **p != ',')
            return false;
        if (*(*p)++ == ',')
            return true;
    }
}

static bool weights_take(const char *p, float *weights, uint32_t n)
{
    if (n == 0)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        char *end;
        if (*p != '-' && *p != '.' && !(*p >= '0' && *p <= '9'))
            return false;
        weights[i] = strtof(p, &end);
        if (end == p || !isfinite(weights[i]) || *end != (i + 1 < n ? ' ' : 0))
            return false;
        p = end + 1;
    }
    return true;
}

/* Ascending, with their weights. */
static void ids_sort(uint32_t *ids, float *weights, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint32_t id = ids[i], j = i;
        float w = weights[i];
        for (; j && ids[j - 1] > id; j--) {
            ids[j] = ids[j - 1];
            weights[j] = weights[j - 1];
        }
        ids[j] = id;
        weights[j] = w;
    }
}

static int ids_check(const reader *r, const uint32_t *ids, uint32_t n, cf_err *err)
{
    const cf_trace_header *h = &r->t->header;
    uint32_t total = r->given_zero ? h->n_experts + h->zero_experts : UINT16_MAX;
    char text[96];
    for (uint32_t i = 0; i < n; i++) {
        if (i && ids[i] == ids[i - 1])
            snprintf(text, sizeof text, "expert %u is chosen twice", ids[i]);
        else if (ids[i] >= total)
            snprintf(text, sizeof text, "expert %u of %u does not exist", ids[i], total);
        else
            continue;
        return row_refuse(r, text, err);
    }
    return 0;
}

static int row_parse(reader *r, const char *line, size_t n, cf_err *err)
{
    cf_routing *t = r->t;
    cf_routed row = {.first = t->n_ids};
    uint32_t ids[CF_TRACE_MAX_K], layer = 0, k;
    float weights[CF_TRACE_MAX_K] = {0};
    const char *p = line;
    if (strlen(line) != n)
        return row_refuse(r, "a row holds a zero byte", err);
    if (!number_take(&p, UINT32_MAX - 1, ',', &row.session) ||
        !number_take(&p, UINT32_MAX - 1, ',', &row.token))
        return row_refuse(r, "a row begins with the numbers of its session and token", err);
    const char *phase = *p ? strchr(CF_TRACE_PHASES, *p) : NULL;
    if (!phase || p[1] != ',')
        return row_refuse(r, "the phase must be P, D or T", err);
    p += 2;
    if (!number_take(&p, MAX_LAYER, ',', &layer) ||
        (t->header.n_layers && layer > t->header.n_layers))
        return row_refuse(r, "the layer is not a number that the header allows", err);
    if (!ids_take(&p, ids, &k))
        return row_refuse(r, "the experts must be at most 64 numbers, with single spaces", err);
    if (t->header.top_k && k > t->header.top_k)
        return row_refuse(r, "there are more experts than the header's top_k", err);
    if (*p && !weights_take(p, weights, k))
        return row_refuse(r, "the weights must be as many finite numbers as experts", err);
    r->weights |= *p != 0;
    ids_sort(ids, weights, k);
    int rc = ids_check(r, ids, k, err);
    if (rc < 0)
        return rc;
    while (row.k < k && ids[row.k] < t->header.n_experts)
        row.k++;
    row.zero = (uint8_t)(k - row.k);
    row.phase = (uint8_t)(phase - CF_TRACE_PHASES);
    row.moe = (uint16_t)layer;
    if (t->n_rows == CF_TRACE_MAX_ROWS || t->n_ids + k > MAX_IDS)
        return row_refuse(r, "the trace is longer than what is read at most", err);
    uint64_t room = r->ids_size;
    CF_TRY(grow((void **)&t->rows, &r->rows_size, t->n_rows + 1, sizeof *t->rows, err));
    CF_TRY(grow((void **)&t->weights, &room, t->n_ids + row.k, sizeof *t->weights, err));
    CF_TRY(grow((void **)&t->ids, &r->ids_size, t->n_ids + row.k, sizeof *t->ids, err));
    if (row.k) {
        memcpy(t->ids + t->n_ids, ids, row.k * sizeof *ids);
        memcpy(t->weights + t->n_ids, weights, row.k * sizeof *weights);
    }
    t->n_ids += row.k;
    t->rows[t->n_rows++] = row;
fail:
    return rc;
}

/* ---- layers and chunks ---- */

static int layers_number(reader *r, cf_err *err)
{
    cf_routing *t = r->t;
    uint32_t most = 1;
    for (uint64_t i = 0; i < t->n_rows; i++) {
        uint32_t k = (uint32_t)t->rows[i].k + t->rows[i].zero;
        r->moe_of[t->rows[i].moe] = 1;
        most = k > most ? k : most;
    }
    t->layers = calloc(MAX_LAYER + 1, sizeof *t->layers);
    if (!t->layers)
        return CF_FAIL(err, -ENOMEM, "out of memory for the layers of %s", r->name);
    for (uint32_t l = 0; l <= MAX_LAYER; l++)
        if (r->moe_of[l]) {
            r->moe_of[l] = t->n_moe;
            t->layers[t->n_moe++] = l;
        }
    for (uint64_t i = 0; i < t->n_rows; i++)
        t->rows[i].moe = (uint16_t)r->moe_of[t->rows[i].moe];
    if (!t->header.top_k)
        t->header.top_k = most;
    if ((uint64_t)t->n_moe * t->header.n_experts > MAX_KEYS)
        return CF_FAIL(err, CF_ELIMIT, "%s: %u layers of %u experts are more than %d together",
                       r->name, t->n_moe, t->header.n_experts, MAX_KEYS);
    return 0;
}

static bool same_token(const cf_routed *a, const cf_routed *b)
{
    return a->session == b->session && a->token == b->token && a->phase == b->phase;
}

/* Row i may be the next one of the first layer of a chunk that holds rows first .. i - 1. */
static bool chunk_continues(const cf_routing *t, uint64_t first, uint64_t i)
{
    const cf_routed *rows = t->rows, *last = &rows[i - 1], *now = &rows[i];
    if (now->moe != rows[first].moe || now->phase != last->phase || i - first >= t->header.chunk)
        return false;
    if (now->phase != CF_PHASE_DECODE)
        return now->session == last->session && now->token == last->token + 1;
    for (uint64_t j = first; j < i; j++)
        if (rows[j].session == now->session)
            return false;
    return true;
}

/* Rows from `first` on that were run together, as their order shows; numbers them. */
static uint64_t run_end(cf_routing *t, uint64_t first, uint32_t *tokens)
{
    cf_routed *rows = t->rows;
    uint64_t i = first + 1, expect;
    rows[first].row = 0;
    while (i < t->n_rows && chunk_continues(t, first, i)) {
        rows[i].row = (uint16_t)(i - first);
        i++;
    }
    uint32_t n = *tokens = (uint32_t)(i - first);
    /* The later layers: the same tokens in the same order, some perhaps left out. */
    expect = 0;
    for (; i < t->n_rows && rows[i].moe >= rows[i - 1].moe; i++) {
        if (rows[i].moe != rows[i - 1].moe)
            expect = 0;
        while (expect < n && !same_token(&rows[first + expect], &rows[i]))
            expect++;
        if (expect == n || rows[i].moe == rows[first].moe)
            break;
        rows[i].row = (uint16_t)expect++;
    }
    return i;
}

/* Token by token in the file, in chunks in a run. */
static uint64_t runs_join(cf_routing *t, uint64_t first, uint64_t end, uint32_t *tokens)
{
    const cf_trace_header *h = &t->header;
    if (h->chunk < 2 || h->plan_order || *tokens != 1 || t->rows[first].phase == CF_PHASE_DECODE)
        return end;
    while (end < t->n_rows && *tokens < h->chunk) {
        const cf_routed *last = &t->rows[end - 1], *next = &t->rows[end];
        uint32_t more;
        if (next->session != last->session || next->phase != last->phase ||
            next->token != last->token + 1)
            break;
        uint64_t to = run_end(t, end, &more);
        if (more != 1)
            break;
        for (uint64_t i = end; i < to; i++)
            t->rows[i].row = (uint16_t)*tokens;
        ++*tokens;
        end = to;
    }
    return end;
}

/* By layer, then by row. */
static int rows_compare(const void *a, const void *b)
{
    const cf_routed *x = a, *y = b;
    return x->moe != y->moe ? (x->moe < y->moe ? -1 : 1) : (x->row > y->row) - (x->row < y->row);
}

static int union_append(reader *r, cf_routing_group *g, cf_err *err)
{
    cf_routing *t = r->t;
    const cf_routed *rows = t->rows + g->first_row;
    if (g->n_rows == 1) {
        g->first_union = rows->first;
        g->n_union = rows->k;
        return 0;
    }
    int rc =
        grow((void **)&t->ids, &r->ids_size, t->n_ids + t->header.n_experts, sizeof *t->ids, err);
    if (rc < 0)
        return rc;
    memset(r->mark, 0, t->header.n_experts);
    for (uint32_t i = 0; i < g->n_rows; i++)
        for (uint32_t j = 0; j < rows[i].k; j++)
            r->mark[t->ids[rows[i].first + j]] = 1;
    g->first_union = t->n_ids;
    for (uint32_t e = 0; e < t->header.n_experts; e++)
        if (r->mark[e])
            t->ids[t->n_ids++] = e;
    g->n_union = (uint32_t)(t->n_ids - g->first_union);
    return 0;
}

static int chunk_append(reader *r, uint64_t first, uint64_t end, uint32_t tokens, cf_err *err)
{
    cf_routing *t = r->t;
    int rc;
    CF_TRY(grow((void **)&t->chunks, &r->chunks_size, t->n_chunks + 1, sizeof *t->chunks, err));
    cf_routing_chunk *c = &t->chunks[t->n_chunks++];
    *c = (cf_routing_chunk){t->n_groups, 0, tokens, t->rows[first].phase};
    t->tokens[c->phase] += tokens;
    for (uint64_t i = first; i < end;) {
        uint64_t from = i;
        while (i < end && t->rows[i].moe == t->rows[from].moe)
            i++;
        CF_TRY(grow((void **)&t->groups, &r->groups_size, t->n_groups + 1, sizeof *t->groups, err));
        cf_routing_group *g = &t->groups[t->n_groups++];
        *g = (cf_routing_group){
            .first_row = from, .n_rows = (uint32_t)(i - from), .moe = t->rows[from].moe};
        CF_TRY(union_append(r, g, err));
        c->n_groups++;
    }
fail:
    return rc;
}

static int chunks_build(reader *r, cf_err *err)
{
    cf_routing *t = r->t;
    r->mark = calloc(t->header.n_experts, 1);
    if (!r->mark)
        return CF_FAIL(err, -ENOMEM, "out of memory for the groups of %s", r->name);
    /* There, if only zero experts were chosen. */
    int rc = grow((void **)&t->ids, &r->ids_size, t->n_ids + 1, sizeof *t->ids, err);
    if (rc < 0)
        return rc;
    for (uint64_t first = 0, end; first < t->n_rows; first = end) {
        const cf_routed *row = &t->rows[first];
        if (first && same_token(row - 1, row) && row[-1].moe == row->moe)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s, line %llu: the row repeats session, token and "
                           "layer of the one before",
                           r->name, (unsigned long long)first + FIRST_ROW_LINE);
        uint32_t tokens;
        end = run_end(t, first, &tokens);
        uint64_t joined = runs_join(t, first, end, &tokens);
        if (joined != end)
            qsort(t->rows + first, joined - first, sizeof *t->rows, rows_compare);
        rc = chunk_append(r, first, joined, tokens, err);
        if (rc < 0)
            return rc;
        end = joined;
    }
    return 0;
}

/* ---- reading ---- */

static int lines_parse(reader *r, cf_err *err)
{
    char *line;
    size_t n;
    int rc;
    CF_TRY(cf_lines_next(r->lines, CF_TRACE_MAX_LINE, &line, &n, err));
    if (rc == 0)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "trace %s is empty", r->name));
    CF_TRY(header_parse(r, line, n, err));
    CF_TRY(cf_lines_next(r->lines, MAX_ROW_BYTES, &line, &n, err));
    if (rc == 0 || strcmp(line, CF_TRACE_COLUMNS) != 0)
        CF_TRY(
            CF_FAIL(err, CF_EFORMAT, "%s, line 2: the columns must be " CF_TRACE_COLUMNS, r->name));
    for (;;) {
        CF_TRY(cf_lines_next(r->lines, MAX_ROW_BYTES, &line, &n, err));
        if (rc == 0)
            break;
        CF_TRY(row_parse(r, line, n, err));
    }
    if (!r->t->n_rows)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "trace %s holds no rows", r->name));
    CF_TRY(layers_number(r, err));
    CF_TRY(chunks_build(r, err));
    if (!r->weights) {
        free(r->t->weights);
        r->t->weights = NULL;
    }
fail:
    return rc < 0 ? rc : 0;
}

static int trace_load(cf_routing **out, const char *name, const char *path, const void *data,
                      size_t bytes, cf_err *err)
{
    int rc = 0;
    reader *r = calloc(1, sizeof *r);
    cf_routing *t = calloc(1, sizeof *t);
    if (!r || !t)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory to read trace %s", name));
    r->name = name;
    r->t = t;
    CF_TRY(cf_lines_open(&r->lines, name, path, data, bytes, err));
    CF_TRY(lines_parse(r, err));
    *out = t;
    t = NULL;
fail:
    if (r) {
        cf_lines_close(&r->lines);
        free(r->mark);
        free(r);
    }
    cf_routing_free(&t);
    return rc;
}

int cf_trace_read(cf_routing **out, const char *path, cf_err *err)
{
    return trace_load(out, path, path, NULL, 0, err);
}

int cf_trace_parse(cf_routing **out, const char *name, const void *data, size_t bytes, cf_err *err)
{
    return trace_load(out, name, NULL, data, bytes, err);
}

void cf_routing_free(cf_routing **routing)
{
    cf_routing *t = *routing;
    if (!t)
        return;
    free(t->layers);
    free(t->rows);
    free(t->ids);
    free(t->weights);
    free(t->groups);
    free(t->chunks);
    free(t);
    *routing = NULL;
}
