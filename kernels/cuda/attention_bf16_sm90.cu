/*
 * Attention on Hopper: BF16 everywhere, the baseline. See attention_sm90.cuh.
 */
#include "attention_sm90.cuh"

extern "C" int hr_attention_bf16_sm90(const hr_sm90_args *args)
{
    return attention_sm90::launch<attention_sm90::Recipe::bf16>(args);
}
