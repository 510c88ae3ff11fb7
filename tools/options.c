/* Command line options: see options.h. */
#include "tools/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/align.h"
#include "runtime/base/log.h"
#include "runtime/base/machine.h"
#include "runtime/policy.h"
#include "tools/inert.h"
#include "tools/progress.h"

const char cf_common_help[] =
    "common options:\n"
    "  --device NAME     auto, vulkan, opencl or ref, each with an optional :index\n"
    "  --vram SIZE       what the device may use; sizes take K M G (powers of 1024)\n"
    "  --ram SIZE        what the host may use beside it\n"
    "  --ctx N           positions in the context; default min(model, 4096)\n"
    "  --chunk N         prompt tokens computed together; default 256\n"
    "  --policy NAME     of the expert cache: lru, lfu[:D], phase[:D], echo (the default)\n"
    "  --history FILE    the policy begins with what it learned in earlier runs, and adds this "
    "one's\n"
    "  --prefetch on|off on: reads start when the router has chosen, and the next layer's are\n"
    "                    guessed; off: when they are needed\n"
    "  --io NAME         auto, uring or pread\n"
    "  --direct on|off   read past the page cache (O_DIRECT); default on\n"
    "  --kv f16|f32|q8   the KV cache; default f32 for latents, which lose most by less, f16\n"
    "                    elsewhere; q8 (8.5 bits a value) takes heads of a multiple of 32\n"
    "  --activations f32|q8  q8: rounded to 8 bits before weights of 8 bits or less (not in\n"
    "                    routers and the head); default f32. eval says what it costs\n"
    "  --threads N       that compute on the host; default one for each processor that this\n"
    "                    process may use. Reading and unpacking have threads of their own\n"
    "  --memory NAME     auto, or discrete: copy into slots even where memory is unified\n"
    "  --check           watch for hazards, with the device's validation layer\n"
    "  --stats FILE      the statistics as JSON\n"
    "  --trace FILE      which experts each token chose, as CSV; .zst compresses\n"
    "  --timeline FILE   what each thread did when, in Chrome's trace format (Perfetto opens it)\n"
    "  -v, -q            say more (closing statistics), say less\n";

void cf_common_init(cf_common *common)
{
    *common = (cf_common){0};
    cf_options_init(&common->engine);
}

bool cf_common_given(const cf_common *common, int opt)
{
    return common->given >> (opt - CF_OPT_DEVICE) & 1;
}

void cf_common_note(cf_common *common, int opt)
{
    cf_assert(opt >= CF_OPT_DEVICE && opt < CF_OPT_DEVICE + 64);
    common->given |= (uint64_t)1 << (opt - CF_OPT_DEVICE);
}

int cf_common_open(cf_common *common, const char *model, cf_engine **engine, cf_engine_info *info,
                   cf_err *err)
{
    cf_progress loading = {0};
    cf_options options = common->engine;
    if (!common->quiet) {
        options.progress = cf_progress_callback;
        options.progress_user = &loading;
    }
    int rc = cf_engine_open(engine, model, &options, err);
    cf_progress_end(&loading);
    if (rc < 0)
        return rc;
    cf_interrupt_begin(*engine, true);
    cf_engine_get_info(*engine, info);
    cf_inert_say(common, *engine);
    return 0;
}

int cf_decoder_only(const cf_engine_info *info, const char *model, const char *command,
                    cf_err *err)
{
    if (!info->encoder)
        return 0;
    return CF_FAIL(err, -EINVAL,
                   "%s has an encoder, for whose input %s has no place: `catflap run` takes it",
                   model, command);
}

void cf_args_begin(cf_args *args)
{
    optind = 0; /* glibc: start anew */
    opterr = 0;
    args->exit_code = CF_EXIT_DONE;
}

int cf_args_usage(cf_args *args, const char *format, ...)
{
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    cf_tool_fail("%s (see catflap %s --help)", line, args->command);
    args->exit_code = CF_EXIT_USAGE;
    return CF_ARGS_STOP;
}

/* ---- values ---- */

bool cf_parse_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || !cf_mul_u64(v, 10, &v) ||
            !cf_add_u64(v, (uint64_t)(*text - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

bool cf_parse_size(const char *text, uint64_t *out)
{
    char digits[32];
    size_t n = strlen(text);
    if (n == 0 || n >= sizeof digits)
        return false;
    unsigned shift = 0;
    switch (text[n - 1]) {
    case 'K':
    case 'k':
        shift = 10;
        break;
    case 'M':
    case 'm':
        shift = 20;
        break;
    case 'G':
    case 'g':
        shift = 30;
        break;
    default:
        break;
    }
    if (shift)
        n--;
    memcpy(digits, text, n);
    digits[n] = 0;
    return cf_parse_u64(digits, out) && cf_mul_u64(*out, (uint64_t)1 << shift, out);
}

int cf_args_u64(cf_args *args, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t v;
    if (!cf_parse_u64(args->value, &v) || v < min || v > max)
        return cf_args_usage(args, "%s takes a whole number from %llu to %llu, not \"%.80s\"",
                             args->name, (unsigned long long)min, (unsigned long long)max,
                             args->value);
    *out = v;
    return 0;
}

int cf_args_u32(cf_args *args, uint32_t min, uint32_t max, uint32_t *out)
{
    uint64_t v = 0;
    int rc = cf_args_u64(args, min, max, &v);
    if (rc == 0)
        *out = (uint32_t)v;
    return rc;
}

int cf_args_double(cf_args *args, double min, double max, double *out)
{
    char *end;
    /* strtod also takes hexadecimal, infinities and leading blanks: only plain decimals here. */
    bool plain = *args->value && strspn(args->value, "0123456789.+-eE") == strlen(args->value);
    double v = plain ? strtod(args->value, &end) : NAN;
    if (!plain || *end || !isfinite(v) || v < min || v > max)
        return cf_args_usage(args, "%s takes a number from %g to %g, not \"%.80s\"", args->name,
                             min, max, args->value);
    *out = v;
    return 0;
}

int cf_args_size(cf_args *args, uint64_t *out)
{
    uint64_t v;
    if (!cf_parse_size(args->value, &v))
        return cf_args_usage(
            args, "%s takes a size in bytes or with K, M or G, such as 4G, not \"%.80s\"",
            args->name, args->value);
    if (v == 0)
        return cf_args_usage(args,
                             "%s 0 leaves no memory at all: give a size such as 4G, or leave "
                             "the flag out",
                             args->name);
    *out = v;
    return 0;
}

int cf_args_switch(cf_args *args, bool *out)
{
    bool on = !strcmp(args->value, "on");
    if (!on && strcmp(args->value, "off") != 0)
        return cf_args_usage(args, "%s takes on or off, not \"%.80s\"", args->name, args->value);
    *out = on;
    return 0;
}

/* One of a list of words; with `indexed`, followed by ":" and a small number if one likes. */
static int args_word(cf_args *args, const char *const *words, bool indexed, const char **out)
{
    size_t n = indexed ? strcspn(args->value, ":") : strlen(args->value);
    uint64_t index;
    bool ok = !args->value[n] || (cf_parse_u64(args->value + n + 1, &index) && index < 1000);
    char list[128] = "";
    for (int i = 0; words[i]; i++) {
        if (ok && strlen(words[i]) == n && !strncmp(words[i], args->value, n)) {
            *out = args->value;
            return 0;
        }
        const char *joint = i == 0 ? "" : words[i + 1] ? ", " : " or ";
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s%s", joint, words[i]);
    }
    return cf_args_usage(args, "%s takes %s%s, not \"%.80s\"", args->name, list,
                         indexed ? " (with an optional :index)" : "", args->value);
}

/* Which names there are is the cache's to say. */
static int args_policy(cf_args *args, const char **out)
{
    cf_err err = {0};
    cf_policy *policy = NULL;
    int rc = cf_policy_create(&policy, args->value, 1, 1, 1, &err);
    cf_policy_destroy(&policy);
    if (rc < 0)
        return cf_args_usage(args, "%s: %s", args->name, err.msg);
    *out = args->value;
    return 0;
}

/* ---- the common flags ---- */

static int common_choice(cf_args *args, int opt)
{
    static const char *const devices[] = {"auto", "vulkan", "opencl", "ref", NULL};
    static const char *const engines[] = {"auto", "uring", "pread", NULL};
    static const char *const kvs[] = {"auto", "f16", "f32", "q8", NULL};
    static const char *const activations[] = {"f32", "q8", NULL};
    static const char *const memories[] = {"auto", "discrete", NULL};
    cf_options *e = &args->common->engine;
    switch (opt) {
    case CF_OPT_DEVICE:
        return args_word(args, devices, true, &e->device);
    case CF_OPT_IO:
        return args_word(args, engines, false, &e->io);
    case CF_OPT_KV:
        return args_word(args, kvs, false, &e->kv);
    case CF_OPT_ACTIVATIONS:
        return args_word(args, activations, false, &e->activations);
    case CF_OPT_MEMORY:
        return args_word(args, memories, false, &e->memory);
    case CF_OPT_POLICY:
        return args_policy(args, &e->policy);
    default:
        return 1;
    }
}

static int path_value(cf_args *args, const char **out)
{
    if (!*args->value)
        return cf_args_usage(args, "%s takes the name of a file, not \"\"", args->name);
    *out = args->value;
    return 0;
}

/* 0 taken, 1 not a common flag, or CF_ARGS_STOP. */
static int common_set(cf_args *args, int opt)
{
    cf_common *c = args->common;
    cf_options *e = &c->engine;
    int rc;
    switch (opt) {
    case 'v':
        c->verbose++;
        return 0;
    case 'q':
        c->quiet = true;
        return 0;
    case CF_OPT_CHECK:
        e->check = true;
        return 0;
    case CF_OPT_VRAM:
        return cf_args_size(args, &e->vram_bytes);
    case CF_OPT_RAM:
        return cf_args_size(args, &e->ram_bytes);
    case CF_OPT_CTX:
        return cf_args_u32(args, 1, 1u << 30, &e->ctx);
    case CF_OPT_CHUNK:
        return cf_args_u32(args, 1, 1u << 20, &e->chunk);
    case CF_OPT_PREFETCH:
        return cf_args_switch(args, &e->prefetch);
    case CF_OPT_DIRECT:
        return cf_args_switch(args, &e->direct);
    case CF_OPT_THREADS: {
        uint32_t threads = 0;
        rc = cf_args_u32(args, 1, 1024, &threads);
        e->threads = (int)threads;
        return rc;
    }
    case CF_OPT_STATS:
        return path_value(args, &c->stats_path);
    case CF_OPT_TRACE:
        return path_value(args, &c->trace_path);
    case CF_OPT_TIMELINE:
        return path_value(args, &c->timeline_path);
    case CF_OPT_HISTORY:
        return path_value(args, &e->history);
    default:
        return common_choice(args, opt);
    }
}

/* PoCL starts a thread for each processor of the machine, and wakes all of them for every kernel,
 * whatever part of the device computes and however few processors the process may use. It takes a
 * number from the environment when it is loaded: a program may set that, a library may not. */
static void driver_threads(const cf_options *options)
{
    char number[16];
    if (getenv("POCL_CPU_MAX_CU_COUNT")) /* its name since PoCL 4, which takes the older one too */
        return;
    snprintf(number, sizeof number, "%d",
             options->threads > 0 ? options->threads : cf_machine_processors(""));
    setenv("POCL_MAX_PTHREAD_COUNT", number, 0);
}

/* What holds between flags, once all are read. */
static int common_finish(cf_args *args)
{
    cf_common *c = args->common;
    if (c->quiet && c->verbose)
        return cf_args_usage(args, "-v and -q exclude each other");
    size_t n = c->trace_path ? strlen(c->trace_path) : 0;
    if (n > 3 && !strcmp(c->trace_path + n - 3, ".gz"))
        return cf_args_usage(args,
                             "--trace writes CSV, compressed where the name ends in .zst, not "
                             ".gz: \"%.200s\"",
                             c->trace_path);
    const char *const paths[] = {c->stats_path, c->trace_path, c->timeline_path,
                                 c->engine.history};
    static const char *const flags[] = {"--stats", "--trace", "--timeline", "--history"};
    for (int i = 0; i < 4; i++)
        for (int j = i + 1; j < 4; j++)
            if (paths[i] && paths[j] && !strcmp(paths[i], paths[j]))
                return cf_args_usage(args, "%s and %s name the same file, %.200s", flags[i],
                                     flags[j], paths[i]);
    driver_threads(&c->engine);
    cf_log_level_set(c->quiet ? CF_LOG_QUIET : CF_LOG_NOTICE + (c->verbose > 2 ? 2 : c->verbose));
    return CF_ARGS_END;
}

/* ---- the loop ---- */

/* The name of the option just read, as written; abbreviations are found out here. */
static int option_name(cf_args *args, int opt, int index, const struct option *options)
{
    if (index < 0) {
        snprintf(args->name, sizeof args->name, "-%c", opt);
        return 0;
    }
    snprintf(args->name, sizeof args->name, "--%s", options[index].name);
    bool apart = optarg && optarg == args->argv[optind - 1];
    const char *word = args->argv[optind - (apart ? 2 : 1)];
    size_t n = strlen(args->name);
    if (strncmp(word, args->name, n) == 0 && (word[n] == 0 || word[n] == '='))
        return 0;
    return cf_args_usage(args, "unknown option %.80s (did you mean %s?)", word, args->name);
}

static int option_refused(cf_args *args, int opt)
{
    const char *word = args->argv[optind - 1];
    if (opt == ':')
        return cf_args_usage(args, "%.80s needs a value", word);
    if (optopt && optopt < 256 && word[0] == '-' && word[1] != '-')
        return cf_args_usage(args, "unknown option -%c", optopt);
    if (optopt >= 256)
        return cf_args_usage(args, "%.80s: this option takes no value", word);
    return cf_args_usage(args, "unknown option %.80s", word);
}

int cf_args_next(cf_args *args)
{
    enum { MAX_OPTIONS = 64 };
    struct option all[MAX_OPTIONS] = {{"help", no_argument, NULL, 'h'}};
    size_t n = 0;
    for (; args->options[n].name; n++) {
        cf_assert(n + 2 < MAX_OPTIONS);
        all[n + 1] = args->options[n];
    }
    char shorts[64];
    snprintf(shorts, sizeof shorts, ":h%s", args->short_options);
    for (;;) {
        int index = -1;
        int opt = getopt_long(args->argc, args->argv, shorts, all, &index);
        if (opt == -1)
            return args->common ? common_finish(args) : CF_ARGS_END;
        if (opt == '?' || opt == ':')
            return option_refused(args, opt);
        args->value = optarg;
        if (option_name(args, opt, index, all) < 0)
            return CF_ARGS_STOP;
        if (opt == 'h') {
            fputs(args->help, stdout);
            if (args->common)
                printf("\n%s", cf_common_help);
            args->exit_code = CF_EXIT_DONE;
            return CF_ARGS_STOP;
        }
        int rc = args->common ? common_set(args, opt) : 1;
        if (rc == 0 && opt >= CF_OPT_DEVICE)
            cf_common_note(args->common, opt);
        if (rc)
            return rc < 0 ? CF_ARGS_STOP : opt;
    }
}

const char *cf_args_operand(cf_args *args, const char *what)
{
    int left = args->argc - optind;
    if (left < 1) {
        cf_args_usage(args, "%s is missing", what);
        return NULL;
    }
    if (left > 1) {
        cf_args_usage(args, "one %s is expected, \"%.80s\" is one too many", what,
                      args->argv[optind + 1]);
        return NULL;
    }
    if (!*args->argv[optind]) {
        cf_args_usage(args, "%s is empty", what);
        return NULL;
    }
    return args->argv[optind];
}

int cf_args_parse(cf_args *args, cf_args_take *take, void *user, const char *what,
                  const char **operand)
{
    int opt;
    cf_args_begin(args);
    while ((opt = cf_args_next(args)) >= 0)
        if (take(user, args, opt) < 0)
            return CF_ARGS_STOP;
    if (opt != CF_ARGS_END)
        return CF_ARGS_STOP;
    *operand = cf_args_operand(args, what);
    return *operand ? 0 : CF_ARGS_STOP;
}
