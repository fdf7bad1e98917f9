/*
 * Instruction-set names, detection and the HEADROOM_ISA limit; see isa.h.
 *
 * An ISA counts as present only when the compiler flags its files are built with (see
 * cmake/HeadroomKernels.cmake) are all covered: a file compiled with -mf16c may use F16C anywhere.
 */
#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/device.h"
#include "status_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static const char *const isa_names[HR_ISA_COUNT] = {
    [HR_ISA_PORTABLE] = "portable",
    [HR_ISA_AVX2] = "avx2",
    [HR_ISA_AVXVNNI] = "avxvnni",
    [HR_ISA_AVX512] = "avx512",
    [HR_ISA_AVX512VNNI] = "avx512vnni",
    [HR_ISA_AVX512FP16] = "avx512fp16",
    [HR_ISA_NEON] = "neon",
    [HR_ISA_NEONI8MM] = "neoni8mm",
    [HR_ISA_SM90] = "sm90",
};

const char *hr_isa_name(hr_isa isa)
{
    return (unsigned)isa < HR_ISA_COUNT ? isa_names[isa] : "unknown";
}

#if defined(__x86_64__)

static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* Not every compiler's __builtin_cpu_supports knows the name. Leaf 7, EDX bit 23. */
static bool has_avx512fp16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 23);
}

/* Nor this one: leaf 7, subleaf 1, EAX bit 4. */
static bool has_avxvnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

/* The builtin checks XGETBV too: an operating system that does not save zmm state has no AVX-512.
 */
static uint32_t detect_cpu(void)
{
    __builtin_cpu_init();
    uint32_t mask = 0;
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()))
        return mask;
    mask |= 1u << HR_ISA_AVX2;
    if (has_avxvnni()) mask |= 1u << HR_ISA_AVXVNNI;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
        return mask;
    mask |= 1u << HR_ISA_AVX512;
    if (!(__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")))
        return mask;
    mask |= 1u << HR_ISA_AVX512VNNI;
    if (has_avx512fp16()) mask |= 1u << HR_ISA_AVX512FP16;
    return mask;
}

#elif defined(__aarch64__) && defined(__linux__)

static uint32_t detect_cpu(void)
{
    const unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP | HWCAP_FPHP;
    if ((getauxval(AT_HWCAP) & needed) != needed) return 0;
    uint32_t mask = 1u << HR_ISA_NEON;
    if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) mask |= 1u << HR_ISA_NEONI8MM;
    return mask;
}

#else

static uint32_t detect_cpu(void)
{
    return 0;
}

#endif

static uint32_t detect_device(hr_device device)
{
    if (device == HR_DEVICE_CPU) return detect_cpu() | 1u << HR_ISA_PORTABLE;
    return hr_device_check(device) == HR_OK ? hr_isa_of_device(device) : 0;
}

uint32_t hr_isa_of_device(hr_device device)
{
    const uint32_t sm90 = 1u << HR_ISA_SM90;
    return device == HR_DEVICE_CUDA ? sm90 : ~sm90;
}

uint32_t hr_isa_detect(void)
{
    return detect_device(HR_DEVICE_CPU) | detect_device(HR_DEVICE_CUDA);
}

static hr_status fail_unknown(const char *name, size_t length)
{
    char known[256];
    size_t used = 0;
    for (int isa = 0; isa < HR_ISA_COUNT; isa++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", isa ? ", " : "",
                                 isa_names[isa]);
    return hr_fail(HR_ERROR_INVALID_ARGUMENT, "unknown instruction set \"%.*s\"; known: %s",
                   (int)(length > 64 ? 64 : length), name, known);
}

hr_status hr_isa_parse(const char *names, uint32_t *mask)
{
    uint32_t parsed = 1u << HR_ISA_PORTABLE;
    for (const char *name = names;; name++) {
        size_t length = strcspn(name, ",");
        int isa = 0;
        while (isa < HR_ISA_COUNT &&
               (strlen(isa_names[isa]) != length || memcmp(isa_names[isa], name, length) != 0))
            isa++;
        if (isa == HR_ISA_COUNT) return fail_unknown(name, length);
        parsed |= 1u << isa;
        name += length;
        if (!*name) break;
    }
    *mask = parsed;
    return HR_OK;
}

static hr_status read_limit(uint32_t *limit)
{
    const char *names = getenv("HEADROOM_ISA");
    *limit = UINT32_MAX;
    if (!names || !*names) return HR_OK;
    hr_status status = hr_isa_parse(names, limit);
    return status == HR_OK ? HR_OK : hr_fail_in(status, "environment variable HEADROOM_ISA");
}

hr_status hr_isa_usable(hr_device device, uint32_t *mask)
{
    uint32_t limit;
    HR_TRY(read_limit(&limit));
    HR_TRY(hr_device_check(device));
    *mask = detect_device(device) & limit;
    if (*mask == 0)
        return hr_fail(HR_ERROR_DEVICE,
                       "environment variable HEADROOM_ISA is \"%.64s\", which leaves out %s, the "
                       "instruction set of device %s",
                       getenv("HEADROOM_ISA"), isa_names[HR_ISA_SM90], hr_device_name(device));
    return HR_OK;
}

uint32_t hr_isa_mask(void)
{
    uint32_t limit;
    return read_limit(&limit) == HR_OK ? hr_isa_detect() & limit : 0;
}
