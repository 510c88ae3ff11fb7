/* See cli.h. */
#include "tests/support/cli.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/check.h"

enum { MAX_WORDS = 48 };

static char binary[1100];
static const tmp_dir *kept;

bool cli_find(void)
{
    char self[1024];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(self, '/');
        if (slash)
            *slash = 0;
    }
    snprintf(binary, sizeof binary, "%s/catflap", self);
    return access(binary, X_OK) == 0;
}

bool cli_begin(tmp_dir *dir)
{
    if (!cli_find()) {
        printf("    skip: %s is not built (make all)\n", binary);
        return false;
    }
    tmp_dir_init(dir);
    kept = dir;
    return true;
}

const char *cli_binary(void)
{
    return binary;
}

/* ---- running it ---- */

/* Pieces of `line` are cut out in place. */
static void words_split(char *line, char **words)
{
    int n = 0;
    for (char *p = line; *p && n < MAX_WORDS - 1;) {
        char end = ' ';
        if (*p == ' ') {
            p++;
            continue;
        }
        if (*p == '\'') {
            end = '\'';
            p++;
        }
        words[n++] = p;
        while (*p && *p != end)
            p++;
        if (*p)
            *p++ = 0;
    }
    words[n] = NULL;
}

int cli_scratch(const char *name)
{
    return open(tmp_path(kept, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

void cli_read_back(int fd, char *text, size_t size)
{
    size_t n = 0;
    ssize_t got;
    lseek(fd, 0, SEEK_SET);
    while (n + 1 < size && (got = read(fd, text + n, size - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = 0;
    close(fd);
}

pid_t cli_start(const char *line, int out, int err, uint64_t fsize)
{
    char copy[4096], *words[MAX_WORDS];
    snprintf(copy, sizeof copy, "%s %s", binary, line);
    words_split(copy, words);
    fflush(stdout);
    pid_t pid = fork();
    if (pid)
        return pid;
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(out >= 0 ? out : cli_scratch("stdout"), 1);
    dup2(err >= 0 ? err : cli_scratch("stderr"), 2);
    if (fsize)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){fsize, fsize});
    alarm(CLI_TIMEOUT_S);
    execv(words[0], words);
    _exit(127);
}

int cli_wait(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return -999;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void cli_limited(cli_result *r, uint64_t fsize, const char *line)
{
    int out = cli_scratch("stdout"), err = cli_scratch("stderr");
    uint64_t begin = cf_clock_ns();
    r->code = cli_wait(cli_start(line, out, err, fsize));
    r->seconds = cf_seconds(cf_clock_ns() - begin);
    cli_read_back(out, r->out, sizeof r->out);
    cli_read_back(err, r->err, sizeof r->err);
}

void cli(cli_result *r, const char *format, ...)
{
    char line[3072];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    cli_limited(r, 0, line);
}

int cli_run(const char *format, ...)
{
    char line[3072];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return cli_wait(cli_start(line, -1, -1, 0));
}

const char *cli_said(const char *where)
{
    static char text[1 << 16];
    cli_read_back(open(tmp_path(kept, where), O_RDONLY | O_CLOEXEC), text, sizeof text);
    return text;
}

/* ---- what it did ---- */

void cli_failed_with(const cli_result *r, const char *part)
{
    CHECK_INT(r->code, 1);
    CHECK_HAS(r->err, part);
    CHECK_HAS(r->err, "catflap: ");
}

bool cli_exists(const char *name)
{
    struct stat st;
    return stat(tmp_path(kept, name), &st) == 0;
}

const char cli_tiny[] = "--shape longcat-flash-tiny --layers 2 --vocab 256";

bool cli_models_made(void)
{
    static int made = -1;
    if (made >= 0)
        return made;
    static cli_result r;
    cli(&r, "mkmodel %s/tiny %s", kept->path, cli_tiny);
    static const char ids[] = "3 200 17 4 4\n98 255 0 31 7 8 9 120 77\n";
    tmp_write(tmp_path(kept, "ids"), ids, sizeof ids - 1);
    made = r.code == 0;
    if (!made)
        printf("    %s", r.err);
    return made;
}

json_t *cli_json(const char *text)
{
    json_error_t e;
    json_t *v = json_loads(text, 0, &e);
    if (!v)
        printf("    not JSON: %s\n", e.text);
    return v;
}

json_int_t cli_json_at(const json_t *v, const char *a, const char *b)
{
    return json_integer_value(json_object_get(json_object_get(v, a), b));
}
