/* What every test program uses: assertions that print both sides, named cases, skips.
 *
 * A test program is a main() of RUN(case) lines that ends in `return check_done();`. It exits 0
 * when all cases passed, 1 when one failed, 77 when all were skipped. Each case prints one line;
 * tests/run.sh adds the lines up. */
#ifndef CF_TESTS_CHECK_H
#define CF_TESTS_CHECK_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* tests/support/check.c */
extern int check_passed, check_failed, check_skipped;
extern bool check_case_failed, check_case_skipped;

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            printf("    %s:%d: %s does not hold\n", __FILE__, __LINE__, #cond);                    \
            check_case_failed = true;                                                              \
        }                                                                                          \
    } while (0)

/* For a branch that must not be taken; `what` says what is wrong. */
#define CHECK_NEVER(what)                                                                          \
    do {                                                                                           \
        printf("    %s:%d: %s\n", __FILE__, __LINE__, what);                                       \
        check_case_failed = true;                                                                  \
    } while (0)

#define CHECK_INT(a, b)                                                                            \
    do {                                                                                           \
        long long check_a = (long long)(a), check_b = (long long)(b);                              \
        if (check_a != check_b) {                                                                  \
            printf("    %s:%d: %s is %lld, expected %s = %lld\n", __FILE__, __LINE__, #a, check_a, \
                   #b, check_b);                                                                   \
            check_case_failed = true;                                                              \
        }                                                                                          \
    } while (0)

#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *check_a = (a), *check_b = (b);                                                 \
        if (strcmp(check_a, check_b) != 0) {                                                       \
            printf("    %s:%d: %s is \"%s\", expected \"%s\"\n", __FILE__, __LINE__, #a, check_a,  \
                   check_b);                                                                       \
            check_case_failed = true;                                                              \
        }                                                                                          \
    } while (0)

/* The text `a` contains `part`: for error sentences. */
#define CHECK_HAS(a, part)                                                                         \
    do {                                                                                           \
        const char *check_a = (a), *check_b = (part);                                              \
        if (!strstr(check_a, check_b)) {                                                           \
            printf("    %s:%d: \"%s\" lacks \"%s\"\n", __FILE__, __LINE__, check_a, check_b);      \
            check_case_failed = true;                                                              \
        }                                                                                          \
    } while (0)

/* Ends the whole case at the first failure that makes the rest meaningless. */
#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            printf("    %s:%d: %s does not hold\n", __FILE__, __LINE__, #cond);                    \
            check_case_failed = true;                                                              \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* Ends the program: for what no case can do without. */
#define must(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            printf("    %s:%d: %s does not hold\n", __FILE__, __LINE__, #cond);                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define SKIP(...)                                                                                  \
    do {                                                                                           \
        printf("    skip: ");                                                                      \
        printf(__VA_ARGS__);                                                                       \
        printf("\n");                                                                              \
        check_case_skipped = true;                                                                 \
        return;                                                                                    \
    } while (0)

static inline void check_case_end(const char *name)
{
    const char *word = check_case_failed ? "FAIL" : check_case_skipped ? "skip" : "ok";
    check_failed += check_case_failed;
    check_skipped += !check_case_failed && check_case_skipped;
    check_passed += !check_case_failed && !check_case_skipped;
    printf("  %-4s %s\n", word, name);
    fflush(stdout);
    check_case_failed = check_case_skipped = false;
}

#define RUN(fn)                                                                                    \
    do {                                                                                           \
        fn();                                                                                      \
        check_case_end(#fn);                                                                       \
    } while (0)

/* A table-driven case: `name` is printed instead of the function's. */
#define RUN_NAMED(name, call)                                                                      \
    do {                                                                                           \
        call;                                                                                      \
        check_case_end(name);                                                                      \
    } while (0)

static inline int check_done(void)
{
    printf("=== %d passed, %d failed, %d skipped\n", check_passed, check_failed, check_skipped);
    return check_failed ? 1 : check_passed ? 0 : 77;
}

#endif
