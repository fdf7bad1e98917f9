/*
 * What a report says of the machine: texts that fit their buffer and are what the system says.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "headroom/headroom.h"
#include "headroom/machine.h"

Test(machine, the_processor_is_a_line_of_cpuinfo)
{
    char cpu[256] = "before", line[512];
    if (!hr_machine_cpu(cpu, sizeof cpu)) {
        cr_assert_str_eq(cpu, "");
        cr_skip("/proc/cpuinfo names no processor");
    }
    FILE *file = fopen("/proc/cpuinfo", "r");
    cr_assert_not_null(file);
    bool found = false;
    while (!found && fgets(line, sizeof line, file))
        found = strstr(line, cpu) != NULL;
    fclose(file);
    cr_assert(found && *cpu && !strchr(cpu, '\n'), "\"%s\"", cpu);
}

Test(machine, the_operating_system_is_that_of_uname)
{
    char os[256];
    struct utsname name;
    cr_assert_eq(uname(&name), 0);
    cr_assert_not_null(hr_machine_os(os, sizeof os));
    cr_assert(strstr(os, name.sysname) && strstr(os, name.release) && strstr(os, name.machine));
}

Test(machine, text_is_cut_to_its_buffer)
{
    char text[8];
    memset(text, 'x', sizeof text);
    cr_assert_not_null(hr_machine_os(text, 4));
    cr_assert_eq(text[3], 0);
    cr_assert_eq(text[4], 'x', "written past the size given");
}

Test(machine, compiler_and_commit_have_their_form)
{
    const char *compiler = hr_machine_compiler(), *commit = hr_machine_commit();
    int major;
    cr_assert(sscanf(compiler, "gcc %d.", &major) == 1 ||
                  sscanf(compiler, "clang %d.", &major) == 1,
              "\"%s\"", compiler);
    if (commit) {
        size_t digits = strspn(commit, "0123456789abcdef");
        cr_assert(digits >= 12, "\"%s\"", commit);
        cr_assert(!commit[digits] || strcmp(commit + digits, "-dirty") == 0, "\"%s\"", commit);
    }
}

Test(machine, a_number_of_threads_that_is_none_fails_plans)
{
    const int32_t cu_seqlens[] = {0, 1};
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, 1, 1, 16);
    problem.cu_seqlens_q = problem.cu_seqlens_kv = cu_seqlens;
    hr_plan *plan;
    setenv("HEADROOM_NUM_THREADS", "many", 1);
    cr_assert_eq(hr_machine_threads(), 0);
    cr_assert(strstr(hr_last_error(), "HEADROOM_NUM_THREADS is \"many\""), "%s", hr_last_error());
    cr_assert_eq(hr_plan_create(&problem, hr_recipe_preset(0), NULL, &plan),
                 HR_ERROR_INVALID_ARGUMENT);
    const hr_plan_options one = {.threads = 1};
    cr_assert_eq(hr_plan_create(&problem, hr_recipe_preset(0), &one, &plan), HR_OK);
    hr_plan_free(plan);
    setenv("HEADROOM_NUM_THREADS", "7", 1);
    cr_assert_eq(hr_machine_threads(), 7);
}
