/*
 * What an audit's figures say to use within an error budget: a config for every query head, and one
 * config for all of them. (choice.c makes the former a choice for KV heads.)
 */
#include <math.h>

#include "headroom/audit.h"
#include "status_internal.h"

static hr_status check(const hr_audit *audit, double budget, const void *out)
{
    if (!audit || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", audit ? "the result" : "audit");
    if (!(budget > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the error budget is %g; it is a relative L2 error and must be > 0", budget);
    return HR_OK;
}

/* Fewer bits are preferred, then the smaller error on this head; of equals, the first stays. */
static bool preferred(const hr_audit_config *a, const hr_audit_config *b, int32_t head)
{
    if (a->kv_bits != b->kv_bits) return a->kv_bits < b->kv_bits;
    return a->heads[head].total.rel_l2 < b->heads[head].total.rel_l2;
}

hr_status hr_audit_choose(const hr_audit *audit, double budget, int32_t *choice)
{
    HR_TRY(check(audit, budget, choice));
    for (int32_t h = 0; h < audit->head_offset[audit->layer_count]; h++) {
        choice[h] = -1;
        for (int32_t c = 0; c < audit->config_count; c++) {
            const hr_audit_config *config = &audit->configs[c];
            if (!(config->heads[h].total.rel_l2 <= budget)) continue;
            if (choice[h] < 0 || preferred(config, &audit->configs[choice[h]], h)) choice[h] = c;
        }
    }
    return HR_OK;
}

/* How many heads exceed the budget with a config, and the largest error; NaN exceeds any. */
static int32_t count_broken(const hr_audit *audit, const hr_audit_config *config, double budget,
                            double *worst)
{
    int32_t broken = 0;
    *worst = 0;
    for (int32_t h = 0; h < audit->head_offset[audit->layer_count]; h++) {
        const double error = config->heads[h].total.rel_l2;
        broken += !(error <= budget);
        if (!(error <= *worst)) *worst = error;
    }
    return broken;
}

hr_status hr_audit_choose_uniform(const hr_audit *audit, double budget, hr_audit_uniform *out)
{
    HR_TRY(check(audit, budget, out));
    const hr_audit_config *configs = audit->configs;
    *out = (hr_audit_uniform){.config = -1, .worst = NAN, .narrower = -1};
    double worst, bits = INFINITY;
    for (int32_t c = 0; c < audit->config_count; c++) {
        if (configs[c].kv_bits > bits || count_broken(audit, &configs[c], budget, &worst) > 0)
            continue;
        if (configs[c].kv_bits == bits && !(worst < out->worst)) continue;
        out->config = c;
        out->worst = worst;
        bits = configs[c].kv_bits;
    }
    for (int32_t c = 0; c < audit->config_count; c++) {
        if (configs[c].kv_bits >= bits) continue;
        const int32_t broken = count_broken(audit, &configs[c], budget, &worst);
        const int32_t last = out->narrower;
        if (last >= 0 && (broken > out->broken ||
                          (broken == out->broken && configs[c].kv_bits >= configs[last].kv_bits)))
            continue;
        out->narrower = c;
        out->broken = broken;
    }
    return HR_OK;
}
