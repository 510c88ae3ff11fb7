/* catflap eval: perplexity and speed over a text, logits and hidden states for comparison.
 *
 * The text is cut into consecutive windows of the context; each window is a session of its own.
 * Sums are in float64 over log-sum-exp of the logits. What is written (--logits, --hidden) goes to
 * its place in the file row by row, so that memory does not grow with the text. */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/stats_table.h"
#include "tools/table.h"
#include "tools/text_io.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "outputs are little-endian float32");

static const char eval_help[] =
    "usage: catflap eval MODEL --text FILE | --ids FILE [options]\n"
    "\n"
    "Perplexity of a text and the speed of computing it. The text is cut into consecutive windows\n"
    "of --ctx tokens. With --text each window begins with the tokenizer's beginning of sequence,\n"
    "where it adds one, and every other token of the window is predicted. With --ids the ids are\n"
    "one sequence and nothing is added: the first id of each window is not predicted.\n"
    "\n"
    "  --text FILE     a text in UTF-8 (- is standard input)\n"
    "  --ids FILE      whitespace-separated token ids; works without a tokenizer\n"
    "  --logits FILE   the logits at every position: little-endian float32 [positions, "
    "vocabulary]\n"
    "  --hidden FILE   the residual stream after each layer: float32 [layers, positions, hidden]\n"
    "                  positions: every token computed, begin-of-sequence tokens included, in "
    "order\n"
    "  --json          the result as JSON\n"
    "\n"
    "With --activations q8 the text is evaluated once more without, and the difference is said; "
    "what\n"
    "is written is of the first time.\n"
    "\n"
    "example:\n"
    "  catflap eval models/demo --text models/demo/oracle/eval.txt --ctx 256\n";

enum { OPT_TEXT = CF_OPT_COMMAND, OPT_IDS, OPT_LOGITS, OPT_HIDDEN, OPT_JSON };

/* clang-format off */
static const struct option eval_options[] = {
    CF_COMMON_OPTIONS,
    {"text", required_argument, NULL, OPT_TEXT},
    {"ids", required_argument, NULL, OPT_IDS},
    {"logits", required_argument, NULL, OPT_LOGITS},
    {"hidden", required_argument, NULL, OPT_HIDDEN},
    {"json", no_argument, NULL, OPT_JSON},
    {0}};
/* clang-format on */

/* A file of float32 rows, written in any order. */
typedef struct rows_file {
    const char *path;
    int fd; /* -1: not asked for */
} rows_file;

typedef struct eval {
    /* The command line. */
    cf_common common;
    const char *model, *text_path, *ids_path;
    bool json;
    rows_file logits, hidden;
    /* The text. */
    char *text;
    size_t text_bytes;
    int32_t *ids;
    uint64_t n_ids;
    /* The run. */
    cf_engine *engine;
    cf_session *session;
    cf_engine_info info;
    int32_t prefix;       /* put before each window, or -1 */
    uint32_t window_ids;  /* of the text, per window */
    uint64_t n_positions; /* over all windows, prefixes included */
    int32_t *window;      /* the current one's ids */
    uint32_t n_window;
    uint64_t window_row; /* the current one's first row in the outputs */
    uint64_t windows, predicted;
    double nll, seconds;
    double nll_exact; /* with float32 activations, where the others were rounded */
    bool rounded;
    cf_progress progress;
    int status; /* of the callbacks */
    cf_err *err;
} eval;

/* ---- the command line ---- */

static int eval_option(void *user, cf_args *args, int opt)
{
    eval *e = user;
    switch (opt) {
    case OPT_TEXT:
        e->text_path = args->value;
        return 0;
    case OPT_IDS:
        e->ids_path = args->value;
        return 0;
    case OPT_LOGITS:
        e->logits.path = args->value;
        return 0;
    case OPT_HIDDEN:
        e->hidden.path = args->value;
        return 0;
    default:
        e->json = true;
        return 0;
    }
}

static int eval_parse(eval *e, int argc, char **argv, int *code)
{
    cf_common_init(&e->common);
    cf_args args = {.command = "eval",
                    .help = eval_help,
                    .short_options = CF_COMMON_SHORT,
                    .options = eval_options,
                    .common = &e->common,
                    .argc = argc,
                    .argv = argv};
    int opt = cf_args_parse(&args, eval_option, e, "MODEL", &e->model);
    if (opt == 0 && !e->text_path == !e->ids_path)
        opt = cf_args_usage(&args, "%s of --text FILE and --ids FILE is expected",
                            e->text_path ? "only one" : "one");
    if (opt == 0 && e->logits.path && e->hidden.path && !strcmp(e->logits.path, e->hidden.path))
        opt = cf_args_usage(&args, "--logits and --hidden name the same file, %.200s",
                            e->logits.path);
    *code = args.exit_code;
    return opt;
}

/* ---- the text ---- */

static int text_read(eval *e, cf_err *err)
{
    if (e->ids_path)
        return cf_ids_read(e->ids_path, &e->ids, &e->n_ids, err);
    int rc = cf_text_read(e->text_path, &e->text, &e->text_bytes, err);
    if (rc < 0)
        return rc;
    size_t bad = cf_utf8_invalid(e->text, e->text_bytes);
    if (bad < e->text_bytes)
        return CF_FAIL(err, CF_EFORMAT, "%s is not valid UTF-8 at byte %zu (0x%02x)", e->text_path,
                       bad, (unsigned)(unsigned char)e->text[bad]);
    return 0;
}

static int text_encode(eval *e, cf_err *err)
{
    const cf_tokenizer *tok = cf_engine_tokenizer(e->engine);
    if (!tok)
        return CF_FAIL(err, -EINVAL, "%s has no tokenizer: give the text as token ids (--ids)",
                       e->model);
    size_t max = e->text_bytes + 1, n = 0;
    e->ids = malloc(max * sizeof *e->ids);
    if (!e->ids)
        return CF_FAIL(err, -ENOMEM, "out of memory for the ids of %zu bytes of text", max);
    int rc = cf_tokenizer_encode(tok, e->text, e->text_bytes, 0, e->ids, max, &n, err);
    if (rc == 0 && n > max)
        rc = CF_FAIL(err, CF_EFORMAT, "%zu bytes of text became %zu tokens, more than one a byte",
                     e->text_bytes, n);
    e->n_ids = n;
    if (cf_tokenizer_adds_bos(tok))
        e->prefix = e->info.bos;
    return rc;
}

/* How the text falls into windows. */
static int windows_plan(eval *e, cf_err *err)
{
    uint32_t added = e->prefix >= 0;
    e->window_ids = e->info.ctx - added;
    if (e->info.ctx < 2)
        return CF_FAIL(err, CF_ELIMIT, "a window of %u token%s predicts nothing: --ctx 2 or more",
                       e->info.ctx, cf_plural(e->info.ctx));
    if (e->n_ids + added < 2)
        return CF_FAIL(err, -EINVAL, "%s has %" PRIu64 " token%s: there is nothing to predict",
                       e->ids_path ? e->ids_path : e->text_path, e->n_ids, cf_plural(e->n_ids));
    e->windows = cf_ceil_div(e->n_ids, e->window_ids);
    e->n_positions = e->n_ids + e->windows * added;
    e->window = malloc(e->info.ctx * sizeof *e->window);
    return e->window ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for a window");
}

/* ---- outputs ---- */

static int rows_open(rows_file *f, cf_err *err)
{
    if (!f->path)
        return 0;
    f->fd = open(f->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0)
        return CF_FAIL(err, -errno, "cannot write %s: %s", f->path, cf_err_name(-errno));
    return 0;
}

static int rows_write(const rows_file *f, uint64_t row, uint64_t n, uint64_t width,
                      const float *data, cf_err *err)
{
    uint64_t bytes = n * width * sizeof *data, off = row * width * sizeof *data;
    const char *p = (const char *)data;
    while (bytes) {
        ssize_t put = pwrite(f->fd, p, bytes, (off_t)off);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            int code = put < 0 ? -errno : -ENOSPC;
            return CF_FAIL(err, code, "writing %s failed: %s", f->path, cf_err_name(code));
        }
        p += put;
        off += (uint64_t)put;
        bytes -= (uint64_t)put;
    }
    return 0;
}

static int rows_close(rows_file *f, cf_err *err)
{
    if (f->fd < 0)
        return 0;
    int rc = close(f->fd) < 0 ? -errno : 0;
    f->fd = -1;
    if (rc < 0)
        CF_FAIL(err, rc, "writing %s failed: %s", f->path, cf_err_name(rc));
    return rc;
}

/* ---- one window ---- */

/* -ln p(id) under the softmax of the logits. */
static double nll_of(const float *logits, uint32_t n, int32_t id)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = (double)logits[i] > max ? (double)logits[i] : max;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum) - (double)logits[id];
}

static void on_row(void *user, uint32_t position, const float *logits, const float *final_hidden)
{
    (void)final_hidden;
    eval *e = user;
    uint64_t row = e->window_row + position;
    if (position + 1 < e->n_window) {
        e->nll += nll_of(logits, e->info.vocab, e->window[position + 1]);
        e->predicted++;
    }
    if (e->logits.fd >= 0 && e->status == 0)
        e->status = rows_write(&e->logits, row, 1, e->info.vocab, logits, e->err);
    if (e->status < 0)
        cf_engine_cancel(e->engine);
    cf_progress_update(&e->progress, row + 1);
}

static void on_layer(void *user, uint32_t layer, uint32_t position, uint32_t n, const float *hidden)
{
    eval *e = user;
    uint64_t row = (uint64_t)layer * e->n_positions + e->window_row + position;
    if (e->status == 0)
        e->status = rows_write(&e->hidden, row, n, e->info.hidden, hidden, e->err);
    if (e->status < 0)
        cf_engine_cancel(e->engine);
}

static int window_run(eval *e, uint64_t first, cf_err *err)
{
    uint64_t left = e->n_ids - first;
    uint32_t n = left < e->window_ids ? (uint32_t)left : e->window_ids;
    e->n_window = 0;
    if (e->prefix >= 0)
        e->window[e->n_window++] = e->prefix;
    memcpy(e->window + e->n_window, e->ids + first, n * sizeof *e->window);
    e->n_window += n;
    cf_outputs out = {.row = on_row, .layer = e->hidden.fd >= 0 ? on_layer : NULL, .user = e};
    /* A session a window: the trace numbers them, and no cache of an earlier one is seen. */
    int rc = cf_session_create(&e->session, e->engine, err);
    if (rc == 0)
        rc = cf_session_extend(e->session, e->window, e->n_window, CF_PHASE_TEXT, &out, err);
    cf_session_destroy(&e->session);
    e->window_row += e->n_window;
    return e->status < 0 ? e->status : rc;
}

static int eval_run(eval *e, cf_err *err)
{
    int rc = 0;
    e->err = err;
    cf_progress_begin_count(&e->progress, "evaluating", e->n_positions, "tokens", e->common.quiet);
    uint64_t begin = cf_clock_ns();
    for (uint64_t first = 0; first < e->n_ids && rc == 0; first += e->window_ids)
        rc = window_run(e, first, err);
    e->seconds = cf_seconds(cf_clock_ns() - begin);
    cf_progress_end(&e->progress);
    if (rc == 0 && !isfinite(e->nll))
        rc = CF_FAIL(err, CF_EFORMAT, "the logits are not finite numbers: no perplexity");
    return rc;
}

/* What rounded activations cost: the same text without. Its statistics are not the run's. */
static int exact_run(eval *e, cf_err *err)
{
    double nll = e->nll, seconds = e->seconds;
    uint64_t predicted = e->predicted;
    e->rounded = true;
    e->nll = 0;
    e->predicted = e->window_row = 0;
    e->engine->activations_q8 = false;
    int rc = eval_run(e, err);
    e->nll_exact = e->nll;
    e->nll = nll;
    e->seconds = seconds;
    e->predicted = predicted;
    return rc;
}

static int eval_open(eval *e, cf_err *err)
{
    int rc;
    rc = cf_common_open(&e->common, e->model, &e->engine, &e->info, err);
    if (rc < 0)
        return rc;
    CF_TRY(cf_decoder_only(&e->info, e->model, "eval", err));
    if (!e->ids_path)
        CF_TRY(text_encode(e, err));
    CF_TRY(cf_ids_check(e->ids, e->n_ids, e->info.vocab, err));
    CF_TRY(windows_plan(e, err));
    CF_TRY(rows_open(&e->logits, err));
    CF_TRY(rows_open(&e->hidden, err));
    CF_TRY(cf_stats_begin_run(e->engine, &e->common, err));
fail:
    return rc;
}

/* ---- the result ---- */

static int result_print(const eval *e)
{
    double perplexity = exp(e->nll / (double)e->predicted);
    double exact = exp(e->nll_exact / (double)e->predicted);
    double speed = e->seconds > 0 ? (double)e->n_positions / e->seconds : 0;
    if (e->json)
        return cf_json_print(
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:b, s:f, s:f, s:s, s:o, s:f, s:f}", "model",
                      e->info.name, "tokens", (json_int_t)e->n_ids, "positions",
                      (json_int_t)e->n_positions, "predicted", (json_int_t)e->predicted, "windows",
                      (json_int_t)e->windows, "ctx", (int)e->info.ctx, "bos", e->prefix >= 0, "nll",
                      e->nll, "perplexity", perplexity, "activations", e->rounded ? "q8" : "f32",
                      "perplexity_f32_activations", e->rounded ? json_real(exact) : json_null(),
                      "seconds", e->seconds, "tok_per_s", speed));
    cf_table *t = cf_table_create("ll");
    cf_table_cell(t, "perplexity");
    cf_table_cell(t, "%.4f", perplexity);
    cf_table_end_row(t);
    if (e->rounded) {
        cf_table_cell(t, "without q8");
        cf_table_cell(t, "%.4f: activations of 8 bits cost %+.3f %%", exact,
                      100 * (perplexity / exact - 1));
        cf_table_end_row(t);
    }
    cf_table_cell(t, "predicted");
    cf_table_cell(t, "%" PRIu64 " token%s in %" PRIu64 " window%s of %u%s", e->predicted,
                  cf_plural(e->predicted), e->windows, cf_plural(e->windows), e->info.ctx,
                  e->prefix >= 0 ? ", each after a begin-of-sequence token" : "");
    cf_table_end_row(t);
    cf_table_cell(t, "speed");
    cf_table_cell(t, "%.1f tokens per second (%" PRIu64 " in %.2f s)", speed, e->n_positions,
                  e->seconds);
    cf_table_end_row(t);
    cf_table_print(t, stdout, 0);
    cf_table_destroy(&t);
    return CF_EXIT_DONE;
}

static void eval_finish(eval *e)
{
    cf_interrupt_end();
    rows_close(&e->logits, NULL);
    rows_close(&e->hidden, NULL);
    cf_session_destroy(&e->session);
    cf_engine_close(&e->engine);
    free(e->window);
    free(e->ids);
    free(e->text);
}

static int outputs_check(const eval *e, cf_err *err)
{
    int rc = cf_stats_check_outputs(&e->common, err);
    if (rc == 0 && e->logits.path)
        rc = cf_output_check(e->logits.path, err);
    if (rc == 0 && e->hidden.path)
        rc = cf_output_check(e->hidden.path, err);
    return rc;
}

int cmd_eval(int argc, char **argv)
{
    eval e = {.prefix = -1, .logits.fd = -1, .hidden.fd = -1};
    cf_err err = {0};
    int code;
    if (eval_parse(&e, argc, argv, &code) != 0)
        return code;
    int rc = text_read(&e, &err);
    if (rc == 0)
        rc = outputs_check(&e, &err);
    if (rc == 0) {
        cf_interrupt_begin(NULL, false);
        rc = eval_open(&e, &err);
    }
    bool opened = e.engine && rc == 0;
    if (rc == 0)
        rc = eval_run(&e, &err);
    if (rc == 0)
        rc = rows_close(&e.logits, &err);
    if (rc == 0)
        rc = rows_close(&e.hidden, &err);
    if (opened) {
        cf_err closing = {0};
        int closed = cf_stats_close_run(e.engine, &e.common, 0, &closing);
        if (closed < 0 && rc == 0) {
            rc = closed;
            err = closing;
        }
    }
    if (rc == 0 && e.engine->activations_q8)
        rc = exact_run(&e, &err);
    if (rc == 0)
        code = result_print(&e);
    if (rc == -ECANCELED && cf_interrupted()) {
        cf_notice("interrupted after %" PRIu64 " of %" PRIu64 " predictions", e.predicted,
                  e.n_positions);
        code = CF_EXIT_INTERRUPTED;
    } else if (rc < 0) {
        code = cf_tool_fail_err(&err, rc);
    }
    eval_finish(&e);
    return code;
}
