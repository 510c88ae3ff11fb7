/* catflap run: a prompt in, text out as it is generated, statistics at the end.
 *
 * Everything that can be refused without the model (flags, files, UTF-8, outputs) is refused
 * before it is opened. Text goes out with write(2), token by token, never through stdio. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "tools/emit.h"
#include "tools/inert.h"
#include "tools/options.h"
#include "tools/sampling.h"
#include "tools/stats_table.h"
#include "tools/status.h"
#include "tools/text_io.h"

static const char run_help[] =
    "usage: catflap run MODEL -p TEXT | -f FILE | --ids FILE [options]\n"
    "\n"
    "Continues a prompt. The generated text goes to standard output as it comes, followed by one\n"
    "newline; everything else goes to standard error. The prompt is raw text: the tokenizer's\n"
    "beginning of sequence is put in front of it, no template is applied. Generation ends at the\n"
    "model's end of sequence, at a --stop text, after -n tokens, or when the context is full.\n"
    "\n"
    "  -p TEXT         the prompt\n"
    "  -f FILE         the prompt from a file (- is standard input)\n"
    "  --ids FILE      the prompt as whitespace-separated token ids, nothing added\n"
    "  --decoder-ids FILE  of a model with an encoder, which reads the prompt: what the decoder\n"
    "                  begins with, as token ids; default its start token\n"
    "  -n N            generate at most N tokens; default 256\n"
    "  --print-ids     print the generated ids on one line instead of text\n"
    "  --special       special tokens written out in the prompt become those tokens\n"
    "  --temp T        temperature; 0, the default, always takes the most likely token\n"
    "  --top-k K       sample among the K most likely tokens; 0, the default, is off\n"
    "  --top-p P       among the most likely whose probabilities reach P; 1, the default, is off\n"
    "  --min-p P       among those at least P times as likely as the first; 0, the default, is "
    "off\n"
    "  --seed S        of the sampling; default 0\n"
    "  --stop TEXT     end before TEXT, which is not printed; may be given several times\n"
    "\n"
    "example:\n"
    "  catflap run models/demo -p \"Once upon a time\" -n 100 --vram 28M -v\n";

enum { OPT_IDS = CF_OPT_AFTER_SAMPLING, OPT_DECODER_IDS, OPT_PRINT_IDS, OPT_SPECIAL, OPT_STOP };

/* clang-format off */
static const struct option run_options[] = {
    CF_COMMON_OPTIONS,
    {"ids", required_argument, NULL, OPT_IDS},
    {"decoder-ids", required_argument, NULL, OPT_DECODER_IDS},
    {"print-ids", no_argument, NULL, OPT_PRINT_IDS},
    {"special", no_argument, NULL, OPT_SPECIAL},
    CF_SAMPLING_OPTIONS,
    {"stop", required_argument, NULL, OPT_STOP},
    {0}};
/* clang-format on */

typedef struct run {
    /* The command line. */
    cf_common common;
    const char *model, *prompt, *prompt_path, *ids_path, *decoder_path;
    uint64_t max_tokens;
    bool print_ids, special;
    cf_sampler_params sampling;
    const char *stops[CF_MAX_STOPS];
    uint32_t n_stops;
    /* The run. */
    char *text;
    size_t text_bytes;
    int32_t *ids, *decoder_ids;
    uint64_t n_ids, n_decoder_ids;
    cf_engine *engine;
    cf_session *session;
    cf_sampler *sampler;
    cf_emit *emit;
    cf_engine_info info;
    const cf_tokenizer *tokenizer;
    uint64_t generated;
    enum { END_LENGTH, END_STOP, END_EOS, END_CTX } ended;
} run;

/* ---- the command line ---- */

static int stop_add(run *r, cf_args *args)
{
    size_t n = strlen(args->value), bad = cf_utf8_invalid(args->value, n);
    if (n == 0 || n > CF_MAX_STOP_BYTES)
        return cf_args_usage(args, "--stop takes a text of 1 to %d bytes, not one of %zu",
                             CF_MAX_STOP_BYTES, n);
    if (bad < n)
        return cf_args_usage(args, "the --stop text is not valid UTF-8 at byte %zu", bad);
    if (r->n_stops == CF_MAX_STOPS)
        return cf_args_usage(args, "--stop can be given at most %d times", CF_MAX_STOPS);
    r->stops[r->n_stops++] = args->value;
    return 0;
}

static int run_option(void *user, cf_args *args, int opt)
{
    run *r = user;
    switch (opt) {
    case 'p':
        r->prompt = args->value;
        return 0;
    case 'f':
        r->prompt_path = args->value;
        return 0;
    case 'n':
        return cf_args_u64(args, 0, 1u << 30, &r->max_tokens);
    case OPT_IDS:
        r->ids_path = args->value;
        return 0;
    case OPT_DECODER_IDS:
        r->decoder_path = args->value;
        return 0;
    case OPT_PRINT_IDS:
        r->print_ids = true;
        return 0;
    case OPT_SPECIAL:
        r->special = true;
        return 0;
    case OPT_STOP:
        return stop_add(r, args);
    default:
        return cf_sampling_option(&r->sampling, args, opt);
    }
}

/* 0, or CF_ARGS_STOP with the exit code in *code. */
static int run_parse(run *r, int argc, char **argv, int *code)
{
    r->max_tokens = 256;
    r->sampling = (cf_sampler_params){.top_p = 1};
    cf_common_init(&r->common);
    cf_args args = {.command = "run",
                    .help = run_help,
                    .short_options = CF_COMMON_SHORT "p:f:n:",
                    .options = run_options,
                    .common = &r->common,
                    .argc = argc,
                    .argv = argv};
    int opt = cf_args_parse(&args, run_option, r, "MODEL", &r->model);
    int prompts = !!r->prompt + !!r->prompt_path + !!r->ids_path;
    if (opt == 0 && prompts != 1)
        opt = cf_args_usage(&args, "%s of -p TEXT, -f FILE and --ids FILE is expected",
                            prompts ? "only one" : "one");
    if (opt == 0 && r->special && r->ids_path)
        opt = cf_args_usage(&args, "--special is about the text of a prompt and --ids gives none");
    if (opt == 0 && r->print_ids && r->n_stops)
        opt = cf_args_usage(&args, "--stop needs text and --print-ids prints none");
    *code = args.exit_code;
    return opt;
}

/* ---- before the model ---- */

static int prompt_read(run *r, cf_err *err)
{
    if (r->decoder_path) {
        int rc = cf_ids_read(r->decoder_path, &r->decoder_ids, &r->n_decoder_ids, err);
        if (rc < 0)
            return rc;
    }
    if (r->ids_path)
        return cf_ids_read(r->ids_path, &r->ids, &r->n_ids, err);
    if (r->prompt_path) {
        int rc = cf_text_read(r->prompt_path, &r->text, &r->text_bytes, err);
        if (rc < 0)
            return rc;
    } else {
        r->text = strdup(r->prompt);
        r->text_bytes = strlen(r->prompt);
        if (!r->text)
            return CF_FAIL(err, -ENOMEM, "out of memory for the prompt");
    }
    size_t bad = cf_utf8_invalid(r->text, r->text_bytes);
    if (bad < r->text_bytes)
        return CF_FAIL(err, CF_EFORMAT, "the prompt%s%s is not valid UTF-8 at byte %zu (0x%02x)",
                       r->prompt_path ? " in " : "", r->prompt_path ? r->prompt_path : "", bad,
                       (unsigned)(unsigned char)r->text[bad]);
    return 0;
}

/* ---- with the model ---- */

static int prompt_encode(run *r, cf_err *err)
{
    if (!r->tokenizer)
        return CF_FAIL(err, -EINVAL,
                       "%s has no tokenizer: give the prompt as token ids (--ids FILE)",
                       r->model);
    int flags = CF_TOK_ADD_PREFIX | (r->special ? CF_TOK_PARSE_SPECIAL : 0);
    size_t max = r->text_bytes + 16, n = 0;
    for (int pass = 0; pass < 2; pass++) {
        free(r->ids);
        r->ids = malloc(max * sizeof *r->ids);
        if (!r->ids)
            return CF_FAIL(err, -ENOMEM, "out of memory for the %zu ids of the prompt", max);
        int rc =
            cf_tokenizer_encode(r->tokenizer, r->text, r->text_bytes, flags, r->ids, max, &n, err);
        if (rc < 0)
            return rc;
        if (n <= max)
            break;
        max = n;
    }
    r->n_ids = n;
    return 0;
}

static int prompt_check(const run *r, cf_err *err)
{
    if (r->n_ids == 0)
        return CF_FAIL(err, -EINVAL, "the prompt has no tokens: there is nothing to continue");
    int rc = cf_ids_check(r->ids, r->n_ids, r->info.vocab, err);
    if (rc < 0)
        return rc;
    if (r->info.encoder || r->n_ids <= r->info.ctx)
        return 0; /* the encoder says itself what it does not take */
    if (r->n_ids <= r->info.ctx_max)
        return CF_FAIL(err, CF_ELIMIT,
                       "the prompt has %" PRIu64 " tokens, the context holds %u: --ctx %" PRIu64
                       " or more would do",
                       r->n_ids, r->info.ctx, r->n_ids + 1);
    return CF_FAIL(err, CF_ELIMIT,
                   "the prompt has %" PRIu64 " tokens, the context holds %u and the model at most "
                   "%u: shorten the prompt",
                   r->n_ids, r->info.ctx, r->info.ctx_max);
}

/* What the decoder begins with: as given, or its start token. */
static int decoder_prepare(run *r, cf_err *err)
{
    if (!r->info.encoder)
        return r->decoder_path ? CF_FAIL(err, -EINVAL, "%s has no encoder: --decoder-ids has no "
                                                       "meaning, --ids is all of the prompt",
                                         r->model)
                               : 0;
    if (r->decoder_path)
        return r->n_decoder_ids
                   ? cf_ids_check(r->decoder_ids, r->n_decoder_ids, r->info.vocab, err)
                   : CF_FAIL(err, -EINVAL, "%s holds no ids for the decoder", r->decoder_path);
    r->decoder_ids = malloc(sizeof *r->decoder_ids);
    if (!r->decoder_ids)
        return CF_FAIL(err, -ENOMEM, "out of memory for the decoder's start");
    r->decoder_ids[0] = r->info.decoder_start;
    r->n_decoder_ids = 1;
    return 0;
}

static int run_open(run *r, cf_err *err)
{
    int rc;
    rc = cf_common_open(&r->common, r->model, &r->engine, &r->info, err);
    if (rc < 0)
        return rc;
    r->tokenizer = cf_engine_tokenizer(r->engine);
    if (!r->print_ids && (!r->tokenizer || !cf_tokenizer_vocab_size(r->tokenizer)))
        return CF_FAIL(err, -EINVAL,
                       "%s has no tokenizer%s and its text cannot be printed: add --print-ids%s",
                       r->model, r->tokenizer ? " that is known" : "",
                       r->tokenizer || r->ids_path ? "" : ", and the prompt as --ids FILE");
    if (!r->ids_path)
        CF_TRY(prompt_encode(r, err));
    CF_TRY(prompt_check(r, err));
    CF_TRY(decoder_prepare(r, err));
    cf_inert_sampling_say(&r->common, &r->sampling, r->info.vocab);
    CF_TRY(cf_sampler_create(&r->sampler, &r->sampling, r->info.vocab, err));
    CF_TRY(cf_emit_create(&r->emit, STDOUT_FILENO, r->stops, r->n_stops, err));
    CF_TRY(cf_stats_begin_run(r->engine, &r->common, err));
    CF_TRY(cf_session_create(&r->session, r->engine, err));
fail:
    return rc;
}

/* One token out: 1 when a stop text is complete. */
static int token_emit(run *r, int32_t id, cf_err *err)
{
    if (r->print_ids) {
        char text[16];
        int n = snprintf(text, sizeof text, "%s%" PRId32, r->generated > 1 ? " " : "", id);
        int rc = cf_write_all(STDOUT_FILENO, text, (size_t)n);
        return rc < 0 ? CF_FAIL(err, rc, "cannot write to standard output: %s", cf_err_name(rc))
                      : 0;
    }
    if (cf_engine_is_eos(r->engine, id) || cf_tokenizer_is_special(r->tokenizer, id))
        return 0;
    size_t n;
    const char *piece = cf_tokenizer_piece(r->tokenizer, id, &n);
    return cf_emit_push(r->emit, piece, n, err);
}

/* The prompt into the session: through the encoder, where there is one. */
static int prompt_process(run *r, cf_err *err)
{
    if (!r->info.encoder)
        return cf_session_extend(r->session, r->ids, (uint32_t)r->n_ids, CF_PHASE_PROMPT, NULL,
                                 err);
    uint32_t n = r->n_ids < UINT32_MAX ? (uint32_t)r->n_ids : UINT32_MAX;
    uint32_t n_decoder = r->n_decoder_ids < UINT32_MAX ? (uint32_t)r->n_decoder_ids : UINT32_MAX;
    int rc = cf_session_encode(r->session, r->ids, n, NULL, err);
    return rc < 0 ? rc
                  : cf_session_extend(r->session, r->decoder_ids, n_decoder, CF_PHASE_PROMPT, NULL,
                                      err);
}

static int generate(run *r, cf_err *err)
{
    cf_status status;
    int rc = prompt_process(r, err);
    cf_status_begin(&status, r->engine, r->common.verbose);
    r->ended = END_LENGTH;
    while (rc == 0 && r->generated < r->max_tokens) {
        int32_t id = cf_sampler_pick(r->sampler, cf_session_logits(r->session));
        r->generated++;
        rc = token_emit(r, id, err);
        if (rc) {
            r->ended = END_STOP;
            break;
        }
        if (cf_engine_is_eos(r->engine, id)) {
            r->ended = END_EOS;
            break;
        }
        if (r->generated == r->max_tokens)
            break;
        if (cf_session_length(r->session) >= r->info.ctx) {
            r->ended = END_CTX;
            break;
        }
        rc = cf_session_extend(r->session, &id, 1, CF_PHASE_DECODE, NULL, err);
        cf_status_update(&status, r->engine);
    }
    cf_status_end(&status);
    return rc < 0 ? rc : 0;
}

/* The rest of the text and the newline behind it, whatever came before. */
static int output_finish(run *r, cf_err *err)
{
    int rc = r->print_ids ? 0 : cf_emit_finish(r->emit, err);
    if (rc >= 0)
        rc = cf_write_all(STDOUT_FILENO, "\n", 1);
    if (rc < 0)
        CF_FAIL(err, rc, "cannot write to standard output: %s", cf_err_name(rc));
    return rc < 0 ? rc : 0;
}

static void end_say(const run *r)
{
    static const char *const why[] = {[END_LENGTH] = "as many as -n asks for",
                                      [END_STOP] = "a --stop text was reached",
                                      [END_EOS] = "the model ended its text"};
    if (r->ended == END_CTX)
        cf_notice("stopped after %" PRIu64 " token%s: the context of %u is full%s", r->generated,
                  cf_plural(r->generated), r->info.ctx,
                  r->info.ctx < r->info.ctx_max ? " (--ctx makes it larger)" : "");
    else
        cf_verbose("stopped after %" PRIu64 " token%s: %s", r->generated, cf_plural(r->generated),
                   why[r->ended]);
}

static int run_engine(run *r, cf_err *err)
{
    int rc = run_open(r, err);
    if (rc < 0)
        return rc;
    cf_notice("seed %" PRIu64, r->sampling.seed);
    rc = generate(r, err);
    if (rc == 0 || rc == -ECANCELED) {
        cf_err ignored = {0};
        int written = output_finish(r, rc == 0 ? err : &ignored);
        rc = rc < 0 ? rc : written;
    }
    if (rc == 0)
        end_say(r);
    if (rc == -ECANCELED)
        cf_notice("interrupted after %" PRIu64 " token%s", r->generated, cf_plural(r->generated));
    return rc;
}

static void run_finish(run *r)
{
    cf_interrupt_end();
    cf_emit_destroy(&r->emit);
    cf_sampler_destroy(&r->sampler);
    cf_session_destroy(&r->session);
    cf_engine_close(&r->engine);
    free(r->ids);
    free(r->decoder_ids);
    free(r->text);
}

int cmd_run(int argc, char **argv)
{
    run r = {0};
    cf_err err = {0};
    int code;
    if (run_parse(&r, argc, argv, &code) != 0)
        return code;
    int rc = prompt_read(&r, &err);
    if (rc == 0)
        rc = cf_stats_check_outputs(&r.common, &err);
    if (rc == 0) {
        cf_interrupt_begin(NULL, false);
        rc = run_engine(&r, &err);
    }
    if (r.session) {
        cf_err closing = {0};
        int closed = cf_stats_close_run(r.engine, &r.common, r.generated, &closing);
        if (closed < 0 && rc == 0) {
            rc = closed;
            err = closing;
        }
    }
    if (rc == -ECANCELED)
        code = CF_EXIT_INTERRUPTED;
    else
        code = rc < 0 ? cf_tool_fail_err(&err, rc) : CF_EXIT_DONE;
    run_finish(&r);
    return code;
}
