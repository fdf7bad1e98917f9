/*
 * The part of Criterion that tests about kernels and formats use, for runs under an emulator:
 * Criterion starts each test as a new process of its own binary, which qemu-user cannot do where
 * the system does not start foreign binaries by itself. Here all tests of a file run in one
 * process, one after the other; a failed assertion ends its test, a failed expectation does not.
 * The exit status is 1 when anything failed. A glob on suite/name as the only argument selects.
 */
#ifndef HEADROOM_EMULATED_CRITERION_H
#define HEADROOM_EMULATED_CRITERION_H

#include <fnmatch.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct emulated_test {
    const char *name; /* suite/name */
    void (*run)(void);
} emulated_test;

enum { EMULATED_TESTS_MAX = 64 };

static emulated_test emulated_tests[EMULATED_TESTS_MAX];
static int emulated_count, emulated_failures;
static jmp_buf emulated_end;

#define Test(suite, name)                                                                          \
    static void suite##_##name##_run(void);                                                        \
    __attribute__((constructor)) static void suite##_##name##_add(void)                            \
    {                                                                                              \
        if (emulated_count == EMULATED_TESTS_MAX) abort();                                         \
        emulated_tests[emulated_count++] =                                                         \
            (emulated_test){#suite "/" #name, suite##_##name##_run};                               \
    }                                                                                              \
    static void suite##_##name##_run(void)

__attribute__((format(printf, 5, 6))) static inline void
emulated_fail(bool fatal, const char *file, int line, const char *what, const char *format, ...)
{
    va_list arguments;
    emulated_failures++;
    fprintf(stderr, "%s:%d: %s: ", file, line, what);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    if (fatal) longjmp(emulated_end, 1);
}

#define EMULATED_CHECK(fatal, good, text, ...)                                                     \
    ((good) ? (void)0 : emulated_fail(fatal, __FILE__, __LINE__, text, " " __VA_ARGS__))

#define cr_assert(good, ...) EMULATED_CHECK(true, good, #good, __VA_ARGS__)
#define cr_expect(good, ...) EMULATED_CHECK(false, good, #good, __VA_ARGS__)
#define cr_expect_not(bad, ...) cr_expect(!(bad), __VA_ARGS__)
#define cr_assert_fail(...) EMULATED_CHECK(true, false, "fail", __VA_ARGS__)
#define cr_skip(...) (printf("skipped: " __VA_ARGS__), longjmp(emulated_end, 1))

#define cr_assert_eq(a, b, ...) cr_assert((a) == (b), __VA_ARGS__)
#define cr_assert_neq(a, b, ...) cr_assert((a) != (b), __VA_ARGS__)
#define cr_assert_lt(a, b, ...) cr_assert((a) < (b), __VA_ARGS__)
#define cr_assert_leq(a, b, ...) cr_assert((a) <= (b), __VA_ARGS__)
#define cr_assert_gt(a, b, ...) cr_assert((a) > (b), __VA_ARGS__)
#define cr_assert_geq(a, b, ...) cr_assert((a) >= (b), __VA_ARGS__)
#define cr_assert_null(a, ...) cr_assert((a) == NULL, __VA_ARGS__)
#define cr_assert_not_null(a, ...) cr_assert((a) != NULL, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) cr_assert(strcmp(a, b) == 0, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...) cr_assert(fabs((a) - (b)) <= (e), __VA_ARGS__)

#define cr_expect_eq(a, b, ...) cr_expect((a) == (b), __VA_ARGS__)
#define cr_expect_neq(a, b, ...) cr_expect((a) != (b), __VA_ARGS__)
#define cr_expect_lt(a, b, ...) cr_expect((a) < (b), __VA_ARGS__)
#define cr_expect_leq(a, b, ...) cr_expect((a) <= (b), __VA_ARGS__)
#define cr_expect_gt(a, b, ...) cr_expect((a) > (b), __VA_ARGS__)
#define cr_expect_null(a, ...) cr_expect((a) == NULL, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) cr_expect(strcmp(a, b) == 0, __VA_ARGS__)
#define cr_expect_str_neq(a, b, ...) cr_expect(strcmp(a, b) != 0, __VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...) cr_expect(fabs((a) - (b)) <= (e), __VA_ARGS__)
#define cr_expect_arr_eq(a, b, size, ...) cr_expect(memcmp(a, b, size) == 0, __VA_ARGS__)

/* True when the test ended by itself. */
static inline bool emulated_run(const emulated_test *test)
{
    if (setjmp(emulated_end) != 0) return false;
    test->run();
    return true;
}

int main(int argc, char **argv)
{
    int ran = 0;
    for (int i = 0; i < emulated_count; i++) {
        if (argc > 1 && fnmatch(argv[1], emulated_tests[i].name, 0) != 0) continue;
        const int before = emulated_failures;
        const bool whole = emulated_run(&emulated_tests[i]);
        const char *outcome = emulated_failures > before ? "FAIL" : whole ? "pass" : "skip";
        printf("%s %s\n", outcome, emulated_tests[i].name);
        ran++;
    }
    printf("ran %d, failures %d\n", ran, emulated_failures);
    return ran == 0 || emulated_failures > 0;
}

#endif
