/* The hazard tracker: see hazard.h.
 *
 * Each stream keeps its accesses in the order of recording: submitted batches (ascending values),
 * then the open batch. An epoch lies between two barriers: only accesses of one epoch can conflict
 * within the stream. What the host knows to be done is dropped. */
#include "gpu/hazard.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"

enum { OVERLAP_MAX_TESTS = 1 << 20 };

struct access {
    uint64_t op_seq; /* accesses of one op share it */
    uint64_t value;  /* of its batch; 0 while that is open */
    uint64_t epoch;  /* barriers before it on its stream */
    const char *op;
    const char *buf_name; /* valid until cf_hazards_forget */
    cf_range range;
    uint32_t buf_id;
    cf_access kind;
    bool device_only; /* the host never touches this buffer */
};

/* Batch `value` and later ones of a stream run after point `other` of the other stream. */
struct edge {
    uint64_t value, other;
};

struct stream_state {
    struct access *list;
    uint64_t count, capacity;
    uint64_t open_begin; /* index: accesses of the open batch */
    uint64_t epoch;
    const char *op;
    uint64_t op_seq;
    uint64_t seen;      /* the other stream's point that later work here runs after */
    uint64_t self_seen; /* the own point that this work, in turn, had waited for */
    struct edge *edges;
    uint64_t edge_count, edge_capacity;
    uint64_t host_seen; /* this stream's point that the host knows to be reached */
};

struct cf_hazards {
    pthread_mutex_t lock;
    struct stream_state streams[CF_STREAM_COUNT];
    cf_hazard_fn *fn;
    void *user;
};

struct sentence {
    char text[512];
};

static const char *const stream_name[CF_STREAM_COUNT] = {"compute", "transfer"};

/* ---- ranges ---- */

static uint64_t range_end(const cf_range *r)
{
    return r->off + (r->outer_n - 1) * r->outer_stride + (r->n - 1) * r->stride + r->bytes;
}

/* Fewest levels for the same bytes: what has one run, or whose runs touch, becomes plain. */
static cf_range range_simplify(cf_range r)
{
    if (r.n > 1 && r.stride == 0)
        r.n = 1;
    if (r.outer_n > 1 && r.outer_stride == 0)
        r.outer_n = 1;
    if (r.n == 1 && r.outer_n > 1) {
        r.n = r.outer_n;
        r.stride = r.outer_stride;
        r.outer_n = 1;
    }
    if (r.outer_n > 1 && r.outer_stride == r.n * r.stride && r.n <= UINT32_MAX / r.outer_n) {
        r.n *= r.outer_n;
        r.outer_n = 1;
    }
    if (r.n > 1 && r.stride <= r.bytes) {
        r.bytes += (r.n - 1) * r.stride;
        r.n = 1;
    }
    return r;
}

/* Runs a of na, runs b of nb, both `stride` apart: a run of b lies at d + m * stride from a run
 * of a, for every m in [-(na - 1), nb - 1]; they meet when that is in (-b.bytes, a.bytes). */
static bool equal_strides_overlap(const cf_range *a, uint64_t na, const cf_range *b, uint64_t nb,
                                  uint64_t stride)
{
    int64_t d = (int64_t)(b->off - a->off), s = (int64_t)stride;
    int64_t m_min = -(int64_t)(na - 1), m_max = (int64_t)(nb - 1);
    /* The smallest m with d + m * s > -b.bytes; division rounds towards zero. */
    int64_t need = 1 - (int64_t)b->bytes - d;
    int64_t m = need / s + (need % s > 0);
    if (m < m_min)
        m = m_min;
    return m <= m_max && d + m * s < (int64_t)a->bytes;
}

/* One level each. */
static bool runs_overlap(const cf_range *a, const cf_range *b, uint64_t *tests)
{
    uint64_t a_end = a->off + (a->n - 1) * a->stride + a->bytes;
    uint64_t b_end = b->off + (b->n - 1) * b->stride + b->bytes;
    ++*tests;
    if (a_end <= b->off || b_end <= a->off)
        return false;
    if (a->n == 1 && b->n == 1)
        return true;
    if (a->n == 1 || b->n == 1 || a->stride == b->stride)
        return equal_strides_overlap(a, a->n, b, b->n, a->n > 1 ? a->stride : b->stride);
    const cf_range *few = a->n < b->n ? a : b, *many = few == a ? b : a;
    cf_range one = cf_range_plain(few->off, few->bytes);
    for (uint32_t i = 0; i < few->n; i++, one.off += few->stride) {
        if (++*tests > OVERLAP_MAX_TESTS)
            return true;
        if (equal_strides_overlap(&one, 1, many, many->n, many->stride))
            return true;
    }
    return false;
}

bool cf_range_overlap(const cf_range *a_in, const cf_range *b_in)
{
    cf_range a = range_simplify(*a_in), b = range_simplify(*b_in);
    if (range_end(&a) <= b.off || range_end(&b) <= a.off)
        return false;
    uint64_t tests = 0;
    cf_range ra = a;
    ra.outer_n = 1;
    for (uint32_t i = 0; i < a.outer_n; i++, ra.off += a.outer_stride) {
        cf_range rb = b;
        rb.outer_n = 1;
        for (uint32_t j = 0; j < b.outer_n; j++, rb.off += b.outer_stride)
            if (runs_overlap(&ra, &rb, &tests) || tests > OVERLAP_MAX_TESTS)
                return true;
    }
    return false;
}

/* ---- life ---- */

int cf_hazards_create(cf_hazards **out, cf_err *err)
{
    cf_hazards *h = calloc(1, sizeof *h);
    if (!h)
        return CF_FAIL(err, -ENOMEM, "out of memory for the hazard tracker");
    pthread_mutex_init(&h->lock, NULL);
    *out = h;
    return 0;
}

void cf_hazards_destroy(cf_hazards **hazards)
{
    cf_hazards *h = *hazards;
    if (!h)
        return;
    for (int s = 0; s < CF_STREAM_COUNT; s++) {
        free(h->streams[s].list);
        free(h->streams[s].edges);
    }
    pthread_mutex_destroy(&h->lock);
    free(h);
    *hazards = NULL;
}

void cf_hazards_handler(cf_hazards *h, cf_hazard_fn *fn, void *user)
{
    pthread_mutex_lock(&h->lock);
    h->fn = fn;
    h->user = user;
    pthread_mutex_unlock(&h->lock);
}

uint64_t cf_hazards_count(cf_hazards *h)
{
    pthread_mutex_lock(&h->lock);
    uint64_t n = 0;
    for (int s = 0; s < CF_STREAM_COUNT; s++)
        n += h->streams[s].count;
    pthread_mutex_unlock(&h->lock);
    return n;
}

/* Leaves the mutex, then reports the sentence if there is one. */
static void unlock_and_report(cf_hazards *h, const struct sentence *s)
{
    cf_hazard_fn *fn = h->fn;
    void *user = h->user;
    pthread_mutex_unlock(&h->lock);
    if (!s->text[0])
        return;
    if (fn) {
        fn(user, s->text);
        return;
    }
    fprintf(stderr, "catflap: %s\n", s->text);
    cf_assert_failed("the order of device work", __FILE__, __LINE__);
}

/* ---- memory ---- */

/* Drops the accesses for which keep() is false. */
static void accesses_filter(struct stream_state *st,
                            bool (*keep)(const struct access *, const void *arg), const void *arg)
{
    uint64_t n = 0, open = 0;
    for (uint64_t i = 0; i < st->count; i++) {
        if (!keep(&st->list[i], arg))
            continue;
        open += i < st->open_begin;
        st->list[n++] = st->list[i];
    }
    st->count = n;
    st->open_begin = open;
}

static bool keep_beyond_host(const struct access *a, const void *arg)
{
    return !a->value || a->value > *(const uint64_t *)arg;
}

static bool keep_other_buffers(const struct access *a, const void *arg)
{
    return a->buf_id != *(const uint32_t *)arg;
}

/* What only the device uses, ordered within its stream and seen by the other, is ordered before
 * everything to come. */
struct ordered {
    uint64_t epoch, self_seen, other_seen;
};

static bool keep_unordered(const struct access *a, const void *arg)
{
    const struct ordered *o = arg;
    bool within = a->epoch < o->epoch || a->value <= o->self_seen;
    return !a->value || !a->device_only || !within || a->value > o->other_seen;
}

/* Grows a list to hold one more; the tracker is a checking tool, so without memory it stops. */
static void *list_grow(void *list, uint64_t count, uint64_t *capacity, size_t size)
{
    if (count < *capacity)
        return list;
    *capacity = *capacity ? *capacity * 2 : 256;
    void *p = realloc(list, (size_t)*capacity * size);
    cf_assert(p != NULL);
    return p;
}

static void access_push(cf_hazards *h, cf_stream stream, const struct access *a)
{
    struct stream_state *st = &h->streams[stream];
    if (st->count == st->capacity && st->count) {
        /* The open batch may hold accesses of an older epoch than the current. */
        uint64_t epoch = st->open_begin < st->count ? st->list[st->open_begin].epoch : st->epoch;
        struct ordered o = {epoch, st->self_seen, h->streams[!stream].seen};
        accesses_filter(st, keep_unordered, &o);
        /* Grow anyway unless half is free, so that the next filter is far away. */
        if (st->count > st->capacity / 2) {
            uint64_t full = st->capacity;
            st->list = list_grow(st->list, full, &st->capacity, sizeof *st->list);
        }
    }
    st->list = list_grow(st->list, st->count, &st->capacity, sizeof *st->list);
    st->list[st->count++] = *a;
}

/* ---- rules ---- */

static bool accesses_conflict(const struct access *a, const struct access *b)
{
    if (a->buf_id != b->buf_id || (a->kind == CF_ACCESS_READ && b->kind == CF_ACCESS_READ) ||
        (a->kind == CF_ACCESS_SCATTER && b->kind == CF_ACCESS_SCATTER))
        return false;
    return cf_range_overlap(&a->range, &b->range);
}

static void conflict_say(struct sentence *s, const struct access *later, const char *later_stream,
                         const struct access *earlier, const char *earlier_stream,
                         const char *lacking)
{
    snprintf(s->text, sizeof s->text,
             "hazard: %s (%s) %s '%s' [%llu, %llu) after %s (%s) %s [%llu, %llu) of it, %s",
             later->op, later_stream, later->kind == CF_ACCESS_READ ? "reads" : "writes",
             later->buf_name, (unsigned long long)later->range.off,
             (unsigned long long)range_end(&later->range), earlier->op, earlier_stream,
             earlier->kind == CF_ACCESS_READ ? "read" : "wrote",
             (unsigned long long)earlier->range.off, (unsigned long long)range_end(&earlier->range),
             lacking);
}

void cf_hazards_op(cf_hazards *h, cf_stream stream, const char *name)
{
    pthread_mutex_lock(&h->lock);
    h->streams[stream].op = name;
    h->streams[stream].op_seq++;
    pthread_mutex_unlock(&h->lock);
}

void cf_hazards_access(cf_hazards *h, cf_stream stream, const cf_gpu_buf *buf,
                       const cf_range *range, cf_access kind)
{
    struct sentence s = {{0}};
    pthread_mutex_lock(&h->lock);
    struct stream_state *st = &h->streams[stream];
    struct access a = {.op_seq = st->op_seq,
                       .epoch = st->epoch,
                       .op = st->op,
                       .buf_name = buf->name,
                       .range = *range,
                       .buf_id = buf->id,
                       .kind = kind,
                       .device_only = buf->kind == CF_BUF_DEVICE};
    for (uint64_t i = st->count; i-- > st->open_begin && st->list[i].epoch == a.epoch;)
        if (st->list[i].op_seq != a.op_seq && !s.text[0] && accesses_conflict(&a, &st->list[i]))
            conflict_say(&s, &a, stream_name[stream], &st->list[i], stream_name[stream],
                         "without a barrier between them");
    access_push(h, stream, &a);
    unlock_and_report(h, &s);
}

void cf_hazards_barrier(cf_hazards *h, cf_stream stream)
{
    pthread_mutex_lock(&h->lock);
    h->streams[stream].epoch++;
    pthread_mutex_unlock(&h->lock);
}

/* The first conflict of the open batch with what its own stream has submitted since the last
 * barrier. A batch before may be ordered all the same: by a wait for work that waited for it. */
static bool batch_check_own(struct stream_state *st, cf_stream stream, struct sentence *s)
{
    if (st->open_begin == st->count)
        return false;
    uint64_t begin = st->open_begin, epoch = st->list[begin].epoch;
    while (begin > 0 && st->list[begin - 1].epoch == epoch &&
           st->list[begin - 1].value > st->self_seen)
        begin--;
    for (uint64_t i = st->open_begin; i < st->count && st->list[i].epoch == epoch; i++)
        for (uint64_t j = begin; j < st->open_begin; j++)
            if (accesses_conflict(&st->list[i], &st->list[j])) {
                conflict_say(s, &st->list[i], stream_name[stream], &st->list[j],
                             stream_name[stream], "without a barrier between them");
                return true;
            }
    return false;
}

/* The first conflict of the open batch with what the other stream has submitted and this stream
 * does not run after. Values ascend, so those are the other's last submitted accesses. */
static void batch_check_other(cf_hazards *h, cf_stream stream, struct sentence *s)
{
    struct stream_state *st = &h->streams[stream], *other = &h->streams[!stream];
    uint64_t begin = other->open_begin;
    while (begin > 0 && other->list[begin - 1].value > st->seen)
        begin--;
    for (uint64_t i = st->open_begin; i < st->count; i++)
        for (uint64_t j = begin; j < other->open_begin; j++)
            if (accesses_conflict(&st->list[i], &other->list[j])) {
                conflict_say(s, &st->list[i], stream_name[stream], &other->list[j],
                             stream_name[!stream], "and its batch does not wait for that point");
                return;
            }
}

/* What the stream's batches up to `value` had waited for on the other stream. */
static uint64_t edges_look(const struct stream_state *st, uint64_t value)
{
    uint64_t other = 0;
    for (uint64_t i = 0; i < st->edge_count && st->edges[i].value <= value; i++)
        other = st->edges[i].other;
    return other;
}

void cf_hazards_submit(cf_hazards *h, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                       uint64_t value)
{
    struct sentence s = {{0}};
    pthread_mutex_lock(&h->lock);
    struct stream_state *st = &h->streams[stream];
    if (!value) {
        st->count = st->open_begin;
        unlock_and_report(h, &s);
        return;
    }
    uint64_t seen = st->seen;
    for (int i = 0; i < n_waits; i++)
        if (waits[i].stream != stream)
            seen = cf_max_u64(seen, waits[i].value);
    if (seen > st->seen) {
        st->seen = seen;
        st->self_seen = cf_max_u64(st->self_seen, edges_look(&h->streams[!stream], seen));
        st->edges = list_grow(st->edges, st->edge_count, &st->edge_capacity, sizeof *st->edges);
        st->edges[st->edge_count++] = (struct edge){value, seen};
    }
    if (!batch_check_own(st, stream, &s))
        batch_check_other(h, stream, &s);
    for (uint64_t i = st->open_begin; i < st->count; i++)
        st->list[i].value = value;
    st->open_begin = st->count;
    unlock_and_report(h, &s);
}

/* The host knows `value` of the stream; what only leads up to it is dropped. */
static void host_advance(struct stream_state *st, uint64_t value)
{
    if (value <= st->host_seen)
        return;
    st->host_seen = value;
    accesses_filter(st, keep_beyond_host, &value);
    uint64_t n = 0;
    while (n < st->edge_count && st->edges[n].value <= value)
        n++;
    if (n) {
        memmove(st->edges, st->edges + n, (size_t)(st->edge_count - n) * sizeof *st->edges);
        st->edge_count -= n;
    }
}

void cf_hazards_waited(cf_hazards *h, cf_gpu_point point)
{
    pthread_mutex_lock(&h->lock);
    struct stream_state *st = &h->streams[point.stream];
    /* What that work had waited for is done as well; no third step: that lies before `point`. */
    uint64_t other = edges_look(st, point.value);
    host_advance(st, point.value);
    host_advance(&h->streams[!point.stream], other);
    pthread_mutex_unlock(&h->lock);
}

void cf_hazards_host(cf_hazards *h, const cf_gpu_buf *buf, uint64_t off, uint64_t bytes, bool write)
{
    struct sentence s = {{0}};
    struct access a = {.op = write ? "cf_gpu_host_write" : "cf_gpu_host_read",
                       .buf_name = buf->name,
                       .range = cf_range_plain(off, bytes),
                       .buf_id = buf->id,
                       .kind = write ? CF_ACCESS_WRITE : CF_ACCESS_READ};
    pthread_mutex_lock(&h->lock);
    for (int i = 0; i < CF_STREAM_COUNT; i++) {
        struct stream_state *st = &h->streams[i];
        for (uint64_t j = 0; j < st->count && !s.text[0]; j++) {
            const struct access *b = &st->list[j];
            if (!b->value && b->kind == CF_ACCESS_READ)
                continue; /* not submitted: it will see what the host writes now */
            if (accesses_conflict(&a, b))
                conflict_say(&s, &a, "host", b, stream_name[i],
                             b->value ? "and the host has not waited for that"
                                      : "in a batch that is not submitted yet");
        }
    }
    unlock_and_report(h, &s);
}

void cf_hazards_forget(cf_hazards *h, const cf_gpu_buf *buf)
{
    struct sentence s = {{0}};
    pthread_mutex_lock(&h->lock);
    for (int i = 0; i < CF_STREAM_COUNT; i++) {
        struct stream_state *st = &h->streams[i];
        for (uint64_t j = 0; j < st->count && !s.text[0]; j++)
            if (st->list[j].buf_id == buf->id && st->list[j].value)
                snprintf(s.text, sizeof s.text,
                         "hazard: '%s' is destroyed, but %s (%s) may still use it", buf->name,
                         st->list[j].op, stream_name[i]);
        accesses_filter(st, keep_other_buffers, &buf->id);
    }
    unlock_and_report(h, &s);
}
