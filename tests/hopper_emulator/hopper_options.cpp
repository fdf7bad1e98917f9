/*
 * The emulator's options and report for tests in C.
 */
#include "hopper_cases.h"
#include "report.h"

using namespace hopper_emulator;

void hopper_set_options(int schedule, uint64_t seed, int fp22)
{
    options() = {(Schedule)schedule, seed, fp22 != 0};
}

const char *hopper_report_text(void)
{
    static std::string text;
    text = report().text();
    return text.c_str();
}
