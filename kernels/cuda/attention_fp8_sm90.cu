/*
 * Attention on Hopper: E4M3 everywhere, promoted to FP32 every tile of keys. See
 * attention_sm90.cuh.
 */
#include "attention_sm90.cuh"

extern "C" int hr_attention_fp8_sm90(const hr_sm90_args *args)
{
    return attention_sm90::launch<attention_sm90::Recipe::fp8>(args);
}
