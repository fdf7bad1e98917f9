/*
 * Scales in groups of channels: code' = round(code * scale_group / scale_token * 2^f) of 16 bits,
 * in FP32 as hr_integer_scale_group does, taken apart into bytes where codes go into tiles:
 *
 *     K    code' = 2^8 high + low, low in 0 .. 255; the tile has high + 128
 *     V    code' = 2^8 high + low, low in -128 .. 127
 *
 * It costs 16 operations for 64 codes more than codes of 8 bits, and 2 for each of a token's
 * groups.
 */
#include "integer_expand_groups_avx512vnni.h"

enum { MAX_GROUPS = HR_INTEGER_MAX_HEAD_DIM / 2 };

/* What the codes of a token become codes of 16 bits with. */
typedef struct token_groups {
    float factor[MAX_GROUPS]; /* scale_group / scale_token * 2^f */
    float zero[MAX_GROUPS];   /* zero points */
} token_groups;

static void load_groups(const code_rows *rows, int32_t token, token_groups *groups)
{
    const hr_kernel_operand *operand = rows->operand;
    const int32_t count = rows->head_dim / operand->block;
    if (token >= rows->end) token = rows->end - 1;
    const int64_t at = hr_kernel_slot(operand, token) * count;
    const __m256 unit = _mm256_set1_ps(hr_integer_power(hr_integer_fraction(operand)));
    const float scale = hr_integer_token_scale(operand, rows->head_dim, token);
    for (int32_t g = 0; g < count; g += 8) {
        const __mmask8 mask = (__mmask8)first_bits(count - g);
        __m256 factor = _mm256_maskz_loadu_ps(mask, operand->scale + at + g);
        factor = _mm256_div_ps(factor, _mm256_set1_ps(scale));
        _mm256_storeu_ps(groups->factor + g, _mm256_mul_ps(factor, unit));
        if (operand->dtype != HR_DTYPE_U4) continue;
        const __m128i zero = _mm_maskz_loadu_epi8(mask, operand->zero_point + at + g);
        _mm256_storeu_ps(groups->zero + g, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zero)));
    }
}

/* 16 floats, one a channel, of the groups that `group` names. */
INLINE __m512 spread(const float *of_group, __m512i group, int32_t count)
{
    if (count <= 16) return _mm512_permutexvar_ps(group, _mm512_loadu_ps(of_group));
    return _mm512_i32gather_ps(group, of_group, sizeof *of_group);
}

/* One operand's way from codes to bytes. */
typedef struct byte_plan {
    int32_t groups;                              /* a token has */
    bool shifted;                                /* codes have zero points */
    __m512i group[HR_INTEGER_MAX_HEAD_DIM / 16]; /* of each 16 channels */
    __m512i high, low;                           /* which of 128 bytes become the 64 */
    __m512i offset;                              /* added before the high byte is taken */
} byte_plan;

/* Byte i of a vector is that of the code `order[i]`. */
static byte_plan plan_bytes(const code_rows *rows, const uint8_t order[WIDE], int offset)
{
    byte_plan plan = {.groups = rows->head_dim / rows->operand->block,
                      .shifted = rows->operand->dtype == HR_DTYPE_U4,
                      .offset = _mm512_set1_epi16((int16_t)offset)};
    uint8_t high[WIDE], low[WIDE];
    for (int i = 0; i < WIDE; i++) {
        /* vpackssdw leaves 4 codes of one vector and 4 of the next in each 128-bit lane. */
        const int word = order[i] / 32 * 32 + order[i] % 16 / 4 * 8 + order[i] / 16 % 2 * 4;
        low[i] = (uint8_t)(2 * (word + order[i] % 4));
        high[i] = (uint8_t)(low[i] + 1);
    }
    plan.low = _mm512_loadu_si512(low);
    plan.high = _mm512_loadu_si512(high);
    const __m512 inverse = _mm512_set1_ps(1 / (float)rows->operand->block);
    for (int32_t c = 0; c < rows->head_dim; c += 16) {
        /* Half a channel more than the exact quotient keeps the rounded one above its integer. */
        const __m512 channel =
            _mm512_add_ps(_mm512_set1_ps((float)c + 0.5f),
                          _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        const __m512i group = _mm512_cvttps_epi32(_mm512_mul_ps(channel, inverse));
        plan.group[c / 16] = _mm512_min_epi32(group, _mm512_set1_epi32(plan.groups - 1));
    }
    return plan;
}

typedef struct wide_codes {
    __m512i high, low;
} wide_codes;

/* Codes of channels [channel, channel + 64) of a token. */
INLINE wide_codes load_wide(const code_rows *rows, const byte_plan *plan,
                            const token_groups *groups, int32_t token, int32_t channel)
{
    const __m512i codes = load_codes(rows, token, channel, rows->nibbles);
    __attribute__((aligned(64))) int8_t bytes[WIDE];
    _mm512_store_si512(bytes, codes);
    __m512i dwords[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i group = plan->group[channel / 16 + i];
        const __m128i sixteen = _mm_load_si128((const __m128i *)(bytes + 16 * i));
        __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen));
        if (plan->shifted) x = _mm512_sub_ps(x, spread(groups->zero, group, plan->groups));
        x = _mm512_mul_ps(x, spread(groups->factor, group, plan->groups));
        dwords[i] = _mm512_cvtps_epi32(x);
    }
    const __m512i a = _mm512_packs_epi32(dwords[0], dwords[1]);
    const __m512i b = _mm512_packs_epi32(dwords[2], dwords[3]);
    return (wide_codes){
        .high = _mm512_permutex2var_epi8(_mm512_add_epi16(a, plan->offset), plan->high,
                                         _mm512_add_epi16(b, plan->offset)),
        .low = _mm512_permutex2var_epi8(a, plan->low, b),
    };
}

/* 64 tokens of K to two tiles of [head_dim / 4][64][4] bytes. */
static void expand_k_tile(const code_rows *rows, const byte_plan *plan, int32_t first,
                          uint8_t *high, uint8_t *low)
{
    for (int32_t token = 0; token < SUBTILE; token += 16) {
        token_groups groups[16];
        for (int i = 0; i < 16; i++)
            load_groups(rows, first + token + i, &groups[i]);
        for (int32_t channel = 0; channel < rows->head_dim; channel += WIDE) {
            __m512i v[16], v_low[16];
            const int32_t left = (rows->head_dim - channel) / 4, quads = left < 16 ? left : 16;
            for (int i = 0; i < 16; i++) {
                const wide_codes codes =
                    load_wide(rows, plan, &groups[i], first + token + i, channel);
                v[i] = codes.high;
                v_low[i] = codes.low;
            }
            transpose_dwords(v);
            transpose_dwords(v_low);
            for (int32_t quad = 0; quad < quads; quad++) {
                const int64_t at = ((channel / 4 + quad) * SUBTILE + token) * 4;
                _mm512_store_si512(high + at, v[quad]);
                _mm512_store_si512(low + at, v_low[quad]);
            }
        }
    }
}

void hr_integer_expand_k_groups(const code_rows *rows, int32_t token, int32_t end, uint8_t *high,
                                uint8_t *low)
{
    uint8_t order[WIDE];
    key_order(order);
    const byte_plan plan = plan_bytes(rows, order, 128 << 8);
    for (; token < end; token += SUBTILE) {
        expand_k_tile(rows, &plan, token, high, low);
        high += SUBTILE * rows->head_dim;
        low += SUBTILE * rows->head_dim;
    }
}

/* 64 tokens of V to two tiles of [16 token quads][channels][4 tokens]. */
static void expand_v_tile(const code_rows *rows, const byte_plan *plan, int32_t first, int8_t *high,
                          int8_t *low)
{
    const int32_t channels = hr_integer_vnni_channels(rows->head_dim);
    for (int32_t quad = 0; quad < SUBTILE / 4; quad++) {
        const int32_t token = first + quad % 4 * 16 + quad / 4 * 4;
        token_groups groups[4];
        for (int i = 0; i < 4; i++)
            load_groups(rows, token + i, &groups[i]);
        for (int32_t channel = 0; channel < channels; channel += WIDE) {
            __m512i r[4], r_low[4], v[4], v_low[4];
            for (int i = 0; i < 4; i++) {
                const wide_codes codes = load_wide(rows, plan, &groups[i], token + i, channel);
                r[i] = codes.high;
                r_low[i] = codes.low;
            }
            interleave_tokens(r, v);
            interleave_tokens(r_low, v_low);
            for (int k = 0; k < 4 && channel + k * 16 < channels; k++) {
                const int64_t at = (quad * channels + channel + k * 16) * 4;
                _mm512_store_si512(high + at, v[k]);
                _mm512_store_si512(low + at, v_low[k]);
            }
        }
    }
}

void hr_integer_expand_v_groups(const code_rows *rows, int32_t token, int32_t end, int8_t *high,
                                int8_t *low)
{
    uint8_t order[WIDE];
    value_order(order);
    const byte_plan plan = plan_bytes(rows, order, 128);
    const int32_t bytes = SUBTILE * hr_integer_vnni_channels(rows->head_dim);
    for (; token < end; token += SUBTILE, high += bytes, low += bytes)
        expand_v_tile(rows, &plan, token, high, low);
}
