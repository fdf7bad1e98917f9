/*
 * What a run found, in words, and the options and counters of the emulator.
 */
#include "block.h"

#include <cstdio>
#include <cstring>

namespace hopper_emulator
{

namespace
{
Options current_options;
Report last_report;
const char *const kind_names[(int)Kind::count] = {
    "race",
    "missing proxy fence",
    "stage overwritten",
    "copy not awaited",
    "uninitialised",
    "register in flight",
    "register not named in the wait",
    "missing wgmma fence",
    "missing expect_tx",
    "mbarrier misuse",
    "barrier misuse",
    "register pool",
    "divergence",
    "invalid argument",
    "stores unfinished",
    "deadlock",
};
} // namespace

Options &options()
{
    return current_options;
}
const Report &report()
{
    return last_report;
}
Counters &counters()
{
    return last_report.counters;
}
const char *kind_name(Kind kind)
{
    return kind_names[(int)kind];
}

bool Report::has(Kind kind) const
{
    for (const Finding &finding : findings)
        if (finding.kind == kind) return true;
    return false;
}

std::string Report::text() const
{
    std::string text;
    for (const Finding &finding : findings)
        text += place(finding.at) + ": " + kind_name(finding.kind) + ": " + finding.message + "\n";
    return text;
}

std::string place(Position at)
{
    const char *slash = std::strrchr(at.file, '/');
    return std::string(slash ? slash + 1 : at.file) + ":" + std::to_string(at.line);
}

std::string hex(uint32_t value)
{
    char text[16];
    std::snprintf(text, sizeof text, "0x%x", value);
    return text;
}

void clear_report()
{
    last_report = Report();
}

/* Findings after this many are repetitions of the first in other words. */
constexpr size_t FINDINGS_LIMIT = 24;

void fault(Kind kind, Position at, const std::string &message)
{
    for (const Finding &finding : last_report.findings)
        if (finding.kind == kind && finding.at.line == at.line &&
            std::strcmp(finding.at.file, at.file) == 0)
            return;
    if (last_report.findings.size() < FINDINGS_LIMIT)
        last_report.findings.push_back({kind, message, at});
}

} // namespace hopper_emulator
