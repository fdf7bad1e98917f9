/*
 * Attention on Hopper: INT8 with scales by token, U8 P: exact integer products. See
 * attention_sm90.cuh.
 */
#include "attention_sm90.cuh"

extern "C" int hr_attention_int8_sm90(const hr_sm90_args *args)
{
    return attention_sm90::launch<attention_sm90::Recipe::int8>(args);
}
