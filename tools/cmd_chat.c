/* catflap chat: a conversation. One line is one turn; the answer goes to standard output as it
 * comes, everything else to standard error.
 *
 * Each turn renders the whole conversation anew, keeps what the session has in common with it and
 * extends by the rest, so templates may rewrite earlier turns (drop an old chain of thought). A
 * turn that does not fit or that the template refuses is taken back; the conversation goes on. */
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/chat_templates.h"
#include "runtime/base/log.h"
#include "runtime/chat.h"
#include "tools/emit.h"
#include "tools/inert.h"
#include "tools/sampling.h"
#include "tools/stats_table.h"
#include "tools/text_io.h"

static const char chat_help[] =
    "usage: catflap chat MODEL [options]\n"
    "\n"
    "A conversation in the model's own chat template: each line of standard input is a turn. What\n"
    "the session holds is kept from turn to turn. Control tokens typed in a turn stay text.\n"
    "Ctrl-C stops the answer; at the prompt it ends the program, as Ctrl-D does.\n"
    "\n"
    "  --system TEXT    a system message in front of the conversation\n"
    "  --template T     a template file, or the name of one that comes with catflap\n"
    "                   (longcat-flash), instead of the model's own\n"
    "  -n N             at most N tokens per answer; default: as many as the context holds\n"
    "  --temp T         temperature; 0, the default, always takes the most likely token\n"
    "  --top-k K        sample among the K most likely tokens; 0, the default, is off\n"
    "  --top-p P        among the most likely whose probabilities reach P; 1, the default, is off\n"
    "  --min-p P        among those at least P times as likely as the first; 0, the default, is "
    "off\n"
    "  --seed S         of the sampling; default 0\n"
    "\n"
    "commands:\n"
    "  /clear           forget the conversation (the system message stays)\n"
    "  /save FILE       write the conversation as JSON\n"
    "  /stats           the statistics so far\n"
    "  /help            these commands\n"
    "\n"
    "example:\n"
    "  catflap chat models/demo --template longcat-flash -n 60\n";

static const char commands_help[] =
    "/clear forgets the conversation, /save FILE writes it as JSON, /stats shows the statistics,\n"
    "Ctrl-C stops an answer, Ctrl-D ends. A turn that begins with / has a blank in front of it.\n";

enum { OPT_SYSTEM = CF_OPT_AFTER_SAMPLING, OPT_TEMPLATE, LINE_MAX_BYTES = 1 << 20 };

/* clang-format off */
static const struct option chat_options[] = {
    CF_COMMON_OPTIONS,
    CF_SAMPLING_OPTIONS,
    {"system", required_argument, NULL, OPT_SYSTEM},
    {"template", required_argument, NULL, OPT_TEMPLATE},
    {0}};
/* clang-format on */

typedef struct chat {
    /* The command line. */
    cf_common common;
    const char *model, *system, *template_name;
    uint64_t max_tokens; /* per answer; 0 = no limit */
    cf_sampler_params sampling;
    /* What is open. */
    cf_chat *templates;
    cf_engine *engine;
    cf_session *session;
    cf_sampler *sampler;
    cf_engine_info info;
    const cf_tokenizer *tokenizer;
    int32_t stop;
    bool terminal;
    /* The conversation, and the ids the session holds. */
    json_t *messages;
    int32_t *held;
    uint64_t generated;
    bool turn_failed;
    /* Input not yet given out, and the answer that is coming. */
    char *input, *answer;
    size_t n_input, n_line, answer_bytes, answer_size;
    bool input_ended;
} chat;

/* ---- the command line ---- */

static int chat_option(void *user, cf_args *args, int opt)
{
    chat *c = user;
    switch (opt) {
    case 'n':
        return cf_args_u64(args, 1, 1u << 30, &c->max_tokens);
    case OPT_TEMPLATE:
        c->template_name = args->value;
        return 0;
    case OPT_SYSTEM:
        c->system = args->value;
        if (cf_utf8_invalid(c->system, strlen(c->system)) < strlen(c->system))
            return cf_args_usage(args, "the --system text is not valid UTF-8");
        return 0;
    default:
        return cf_sampling_option(&c->sampling, args, opt);
    }
}

static int chat_parse(chat *c, int argc, char **argv, int *code)
{
    c->sampling = (cf_sampler_params){.top_p = 1};
    cf_common_init(&c->common);
    cf_args args = {.command = "chat",
                    .help = chat_help,
                    .short_options = CF_COMMON_SHORT "n:",
                    .options = chat_options,
                    .common = &c->common,
                    .argc = argc,
                    .argv = argv};
    int opt = cf_args_parse(&args, chat_option, c, "MODEL", &c->model);
    *code = args.exit_code;
    return opt;
}

/* ---- opening ---- */

static int template_open(chat *c, cf_err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    const cf_model *model = cf_engine_model(c->engine);
    const char *built_in = c->template_name ? cf_chat_template_builtin(c->template_name) : NULL;
    if (!c->template_name) {
        cf_err own = {0};
        int found = cf_chat_open_model(model, NULL, 0, &c->templates, &own);
        if (found == -ENOENT)
            return CF_FAIL(err, found, "%.180s (a file, or %s)", own.msg, cf_chat_template_names());
        *err = own;
        return found;
    }
    if (built_in)
        return cf_chat_open_model(model, built_in, strlen(built_in), &c->templates, err);
    if (access(c->template_name, F_OK) != 0)
        return CF_FAIL(err, -ENOENT,
                       "there is no template file \"%.200s\", and no template of "
                       "that name (there is: %s)",
                       c->template_name, cf_chat_template_names());
    int rc = cf_text_read(c->template_name, &text, &bytes, err);
    if (rc == 0)
        rc = cf_chat_open_model(model, text, bytes, &c->templates, err);
    free(text);
    return rc;
}

/* An empty conversation: nothing, or the system message. */
static int conversation_clear(chat *c, cf_err *err)
{
    json_decref(c->messages);
    c->messages =
        c->system ? json_pack("[{s:s,s:s}]", "role", "system", "content", c->system) : json_array();
    return c->messages ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for the conversation");
}

static int chat_open(chat *c, cf_err *err)
{
    int rc = cf_common_open(&c->common, c->model, &c->engine, &c->info, err);
    if (rc == 0)
        rc = cf_decoder_only(&c->info, c->model, "chat", err);
    if (rc < 0)
        return rc;
    c->tokenizer = cf_engine_tokenizer(c->engine);
    if (!c->tokenizer)
        return CF_FAIL(err, -EINVAL, "%s has no tokenizer: there is no talking to it", c->model);
    if (cf_tokenizer_refusal(c->tokenizer))
        return CF_FAIL(err, CF_EFORMAT, "%s", cf_tokenizer_refusal(c->tokenizer));
    rc = template_open(c, err);
    if (rc < 0)
        return rc;
    c->stop = cf_chat_stop(c->templates, c->tokenizer);
    c->held = malloc((c->info.ctx + (size_t)1) * sizeof *c->held);
    c->input = malloc(LINE_MAX_BYTES + 1);
    if (!c->held || !c->input)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the conversation"));
    CF_TRY(cf_sampler_create(&c->sampler, &c->sampling, c->info.vocab, err));
    cf_inert_sampling_say(&c->common, &c->sampling, c->info.vocab);
    CF_TRY(cf_stats_begin_run(c->engine, &c->common, err));
    CF_TRY(cf_session_create(&c->session, c->engine, err));
fail:
    return rc;
}

/* ---- input ---- */

/* Waits for input: 1, or -ECANCELED on Ctrl-C. Looks now and then, since a signal may come just
 * before the wait. */
static int input_wait(void)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    for (;;) {
        if (cf_interrupted())
            return -ECANCELED;
        int n = poll(&in, 1, 200);
        if (n > 0 || (n < 0 && errno != EINTR))
            return 1;
    }
}

/* The next line without its newline, NUL-terminated, valid until the next call: 1; 0 at the end. */
static int line_read(chat *c, char **line, cf_err *err)
{
    memmove(c->input, c->input + c->n_line, c->n_input - c->n_line);
    c->n_input -= c->n_line;
    c->n_line = 0;
    for (;;) {
        char *newline = c->n_input ? memchr(c->input, '\n', c->n_input) : NULL;
        if (newline || (c->input_ended && c->n_input)) {
            size_t n = newline ? (size_t)(newline - c->input) : c->n_input;
            c->n_line = newline ? n + 1 : n;
            c->input[n] = 0;
            if (memchr(c->input, 0, n))
                return CF_FAIL(err, CF_EFORMAT, "a line of standard input holds a zero byte");
            *line = c->input;
            return 1;
        }
        if (c->input_ended)
            return 0;
        if (c->n_input == LINE_MAX_BYTES)
            return CF_FAIL(err, CF_ELIMIT, "a line of more than %d bytes", LINE_MAX_BYTES);
        int rc = input_wait();
        if (rc < 0)
            return rc;
        ssize_t got = read(STDIN_FILENO, c->input + c->n_input, LINE_MAX_BYTES - c->n_input);
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return CF_FAIL(err, -errno, "cannot read standard input: %s", cf_err_name(-errno));
        c->input_ended = got == 0;
        c->n_input += got > 0 ? (size_t)got : 0;
    }
}

/* ---- a turn ---- */

static int message_add(chat *c, const char *role, const char *text, size_t bytes, cf_err *err)
{
    json_t *m = json_pack("{s:s,s:s%}", "role", role, "content", text, bytes);
    return m && json_array_append_new(c->messages, m) == 0
               ? 0
               : CF_FAIL(err, -ENOMEM, "out of memory for the conversation");
}

/* Brings the session to these ids, keeping what it has in common with them. */
static int session_bring(chat *c, const int32_t *ids, size_t n, cf_err *err)
{
    uint32_t common = 0, length = cf_session_length(c->session);
    if (n == 0)
        return CF_FAIL(err, -EINVAL, "the template made no tokens of the conversation");
    if (n >= c->info.ctx)
        return CF_FAIL(err, CF_ELIMIT,
                       "the conversation has %zu tokens and the context holds %u: /clear begins "
                       "anew%s",
                       n, c->info.ctx,
                       c->info.ctx < c->info.ctx_max ? ", --ctx makes it larger" : "");
    /* The last id is always processed: its logits are what the answer begins with. */
    while (common < length && common + 1 < n && c->held[common] == ids[common])
        common++;
    common = cf_session_rewind(c->session, common);
    memcpy(c->held + common, ids + common, (n - common) * sizeof *ids);
    cf_verbose("turn of %zu tokens, %u of them kept", n, common);
    return cf_session_extend(c->session, ids + common, (uint32_t)n - common, CF_PHASE_PROMPT, NULL,
                             err);
}

static int answer_add(chat *c, const char *piece, size_t n, cf_err *err)
{
    if (c->answer_size - c->answer_bytes < n) {
        size_t size = 2 * c->answer_size + n + 4096;
        char *larger = realloc(c->answer, size);
        if (!larger)
            return CF_FAIL(err, -ENOMEM, "out of memory for the answer");
        c->answer = larger;
        c->answer_size = size;
    }
    memcpy(c->answer + c->answer_bytes, piece, n);
    c->answer_bytes += n;
    return 0;
}

static int answer_generate(chat *c, cf_emit *emit, cf_err *err)
{
    int rc = 0;
    for (uint64_t n = 0; rc == 0 && (c->max_tokens == 0 || n < c->max_tokens); n++) {
        int32_t id = cf_sampler_pick(c->sampler, cf_session_logits(c->session));
        c->generated++;
        if (id == c->stop || cf_engine_is_eos(c->engine, id))
            return 0;
        size_t bytes = 0;
        const char *piece = cf_tokenizer_is_special(c->tokenizer, id)
                                ? ""
                            : c->answer_bytes == 0
                                ? cf_tokenizer_piece_first(c->tokenizer, id, &bytes)
                                : cf_tokenizer_piece(c->tokenizer, id, &bytes);
        rc = cf_emit_push(emit, piece, bytes, err);
        if (rc == 0)
            rc = answer_add(c, piece, bytes, err);
        if (rc < 0)
            return rc;
        uint32_t length = cf_session_length(c->session);
        if (length >= c->info.ctx) {
            cf_notice("the context of %u tokens is full: /clear begins anew", c->info.ctx);
            return 0;
        }
        c->held[length] = id;
        rc = cf_session_extend(c->session, &id, 1, CF_PHASE_DECODE, NULL, err);
    }
    return rc;
}

/* The answer joins the conversation, in whole characters. */
static int answer_keep(chat *c, cf_err *err)
{
    cf_utf8_stream stream = {0};
    size_t size = 3 * (c->answer_bytes + 8), n;
    char *text = malloc(size);
    if (!text)
        return CF_FAIL(err, -ENOMEM, "out of memory for the answer");
    n = cf_utf8_push(&stream, c->answer, c->answer_bytes, text, size);
    n += cf_utf8_finish(&stream, text + n, size - n);
    int rc = message_add(c, "assistant", text, n, err);
    free(text);
    return rc;
}

/* 0 also when the answer was stopped. */
static int answer(chat *c, cf_err *err)
{
    cf_emit *emit = NULL;
    int rc = cf_emit_create(&emit, STDOUT_FILENO, NULL, 0, err);
    if (rc < 0)
        return rc;
    c->answer_bytes = 0;
    rc = answer_generate(c, emit, err);
    if (rc == 0 || rc == -ECANCELED) {
        int written = cf_emit_finish(emit, err);
        if (written >= 0 && (written = cf_write_all(STDOUT_FILENO, "\n", 1)) < 0)
            CF_FAIL(err, written, "cannot write to standard output: %s", cf_err_name(written));
        if (written < 0)
            rc = written;
        else if (answer_keep(c, err) < 0)
            rc = -ENOMEM;
    }
    cf_emit_destroy(&emit);
    return rc;
}

/* A line of the user's. What fails before the answer begins is said, and the turn taken back. */
static int turn(chat *c, const char *line, cf_err *err)
{
    cf_err local = {0};
    cf_jinja_text text = {0};
    int32_t *ids = NULL;
    size_t n = 0, before = json_array_size(c->messages), bytes = strlen(line);
    size_t bad = cf_utf8_invalid(line, bytes);
    int rc = bad < bytes
                 ? CF_FAIL(&local, CF_EFORMAT, "the line is not valid UTF-8 at byte %zu", bad)
                 : message_add(c, "user", line, bytes, &local);
    if (rc == 0)
        rc = cf_chat_render(c->templates, c->messages, NULL, NULL, true, &text, &local);
    if (rc == 0)
        rc = cf_chat_encode(c->tokenizer, &text, &ids, &n, &local);
    if (rc == 0)
        rc = session_bring(c, ids, n, &local);
    bool begun = rc == 0;
    if (begun)
        rc = answer(c, err);
    free(ids);
    cf_jinja_text_finish(&text);
    if (begun || rc == 0)
        return rc;
    while (json_array_size(c->messages) > before)
        json_array_remove(c->messages, before);
    if (rc == -ECANCELED)
        return rc;
    cf_tool_fail_err(&local, rc);
    c->turn_failed = true;
    /* Without its device or its files there is nothing to go on with. */
    if (rc == CF_EDEVICE || rc == CF_ECHANGED || rc == -EIO) {
        *err = local;
        return rc;
    }
    return 0;
}

/* ---- commands ---- */

static int conversation_save(chat *c, const char *path)
{
    cf_err err = {0};
    char *text = json_dumps(c->messages, JSON_INDENT(1));
    int rc = !*path ? CF_FAIL(&err, -EINVAL, "/save needs the name of a file")
             : cf_output_check(path, &err) < 0 ? err.code
             : text ? cf_output_write(path, text, strlen(text), &err)
                    : CF_FAIL(&err, -ENOMEM, "out of memory for the conversation");
    free(text);
    if (rc == 0) {
        cf_notice("%zu messages written to %s", json_array_size(c->messages), path);
        return 0;
    }
    cf_tool_fail_err(&err, rc);
    c->turn_failed = true;
    return 0;
}

static int command(chat *c, const char *line, cf_err *err)
{
    if (!strcmp(line, "/clear"))
        return conversation_clear(c, err);
    if (!strcmp(line, "/stats")) {
        cf_stats_print(c->engine, c->generated, stderr);
    } else if (!strcmp(line, "/help")) {
        fputs(commands_help, stderr);
    } else if (!strcmp(line, "/save") || !strncmp(line, "/save ", 6)) {
        const char *path = line + 5;
        return conversation_save(c, path + strspn(path, " \t"));
    } else {
        cf_tool_fail("there is no command \"%.40s\" (see /help)", line);
        c->turn_failed = true;
    }
    return 0;
}

/* ---- the conversation ---- */

static int chat_loop(chat *c, cf_err *err)
{
    for (;;) {
        char *line = NULL;
        if (c->terminal)
            fputs("> ", stderr);
        int rc = line_read(c, &line, err);
        if (rc <= 0)
            return rc;
        if (!*line)
            continue;
        rc = *line == '/' ? command(c, line, err) : turn(c, line, err);
        if (rc == -ECANCELED && cf_interrupt_reset(c->engine)) {
            cf_notice("the answer was stopped");
            *err = (cf_err){0};
            rc = 0;
        }
        if (rc < 0)
            return rc;
    }
}

static void chat_finish(chat *c)
{
    cf_interrupt_end();
    cf_sampler_destroy(&c->sampler);
    cf_session_destroy(&c->session);
    cf_engine_close(&c->engine);
    cf_chat_close(&c->templates);
    json_decref(c->messages);
    free(c->held);
    free(c->input);
    free(c->answer);
}

static int chat_run(chat *c, cf_err *err)
{
    int rc = cf_stats_check_outputs(&c->common, err);
    if (rc == 0)
        rc = conversation_clear(c, err);
    if (rc < 0)
        return rc;
    cf_interrupt_begin(NULL, false);
    rc = chat_open(c, err);
    if (rc < 0)
        return rc;
    c->terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    cf_notice("seed %" PRIu64 "%s", c->sampling.seed, c->terminal ? "; /help lists commands" : "");
    return chat_loop(c, err);
}

int cmd_chat(int argc, char **argv)
{
    chat c = {0};
    cf_err err = {0};
    int code;
    if (chat_parse(&c, argc, argv, &code) != 0)
        return code;
    int rc = chat_run(&c, &err);
    if (c.session) {
        cf_err closing = {0};
        int closed = cf_stats_close_run(c.engine, &c.common, c.generated, &closing);
        if (closed < 0 && rc == 0) {
            rc = closed;
            err = closing;
        }
    }
    if (rc == -ECANCELED)
        code = CF_EXIT_INTERRUPTED;
    else if (rc < 0)
        code = cf_tool_fail_err(&err, rc);
    else
        code = c.turn_failed && !c.terminal ? CF_EXIT_FAILED : CF_EXIT_DONE;
    chat_finish(&c);
    return code;
}
