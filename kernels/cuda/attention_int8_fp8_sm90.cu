/*
 * Attention on Hopper: INT8 queries and keys with scales by token, E4M3 values and P. See
 * attention_sm90.cuh.
 */
#include "attention_sm90.cuh"

extern "C" int hr_attention_int8_fp8_sm90(const hr_sm90_args *args)
{
    return attention_sm90::launch<attention_sm90::Recipe::int8_fp8>(args);
}
