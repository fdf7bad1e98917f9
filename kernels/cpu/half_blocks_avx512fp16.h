/*
 * The two matrix products of FP8 decode in FP16, on K and V in blocks of 16 tokens
 * (HR_LAYOUT_BLOCKS_K, HR_LAYOUT_BLOCKS_V):
 *
 *     K line   [16 tokens][4 channels]: even bytes as FP16 are channels 0 and 2 of token t in the
 *              halves of dword t, odd bytes channels 1 and 3. Q lies the same way, so a dword of
 *              it, broadcast by its load, multiplies them, and dword t adds up token t in halves
 *     V line   [16 channels][4 tokens]: the same with tokens for channels and P for Q
 *
 * Nothing is shuffled, and a line is converted once for up to 8 rows. The vector ports limit: 6
 * operations to convert a line and watch it for NaN, and 2 a row.
 */
#ifndef HEADROOM_HALF_BLOCKS_AVX512FP16_H
#define HEADROOM_HALF_BLOCKS_AVX512FP16_H

#include "block_list_avx512.h"
#include "e4m3_decode_avx512.h"
#include "float_load.h"

enum {
    STEP_KEYS = 64, /* keys whose V is multiplied before the next pass over channels */
    STEP_BLOCKS = STEP_KEYS / BLOCK_KEYS,
    LINE_COST = 6, /* of a line converted and of it times a row, in half cycles: for prefetching */
    ROW_COST = 2,
    SOFTMAX_COST = 350, /* of a row */
    PLACES = 4,
    TURN_BYTES = 128,
    GROUP_ROWS = 8, /* rows multiplied together */
    LINE = 64,      /* bytes */
    LANES = 32,     /* of FP16 in a vector */
    PADDING = 16,   /* dwords after a row, so that rows do not lie 1 KiB or 4 KiB apart */
    CHAIN = 8, /* lines of K, 32 channels, that are added up in FP16 before their sum is added */
    Q_STRIDE = MAX_CHANNELS / 2 + PADDING,
    P_STRIDE = DECODE_TILE / 2 + PADDING,
    S_STRIDE = DECODE_TILE + 2 * PADDING,
    T_STRIDE = 2 * MAX_CHANNELS + 2 * PADDING,
    Q_ODD = MAX_CHANNELS / 4 /* where the dwords of odd channels begin */
};

/* What is left of the next tile to prefetch, in turns of a few lines of each place. */
typedef struct block_prefetcher {
    const tile_blocks *next;
    int32_t done;   /* turns */
    int32_t credit; /* 1/4096 turns due */
    int32_t share;  /* 1/4096 turns a step of cost 1 */
    int32_t turns;  /* that a block takes */
} block_prefetcher;

/* A few lines of each place of K and of V. */
WIDE_INLINE void prefetch_turn(block_prefetcher *p)
{
    const int32_t block = p->done / p->turns, at = p->done % p->turns * TURN_BYTES;
    p->done++;
    UNROLL
    for (int place = 0; place < PLACES; place++) {
        const int32_t i = (place * (TILE_BLOCKS / PLACES) + block) % TILE_BLOCKS;
        const uint8_t *k = p->next->k[i] + at, *v = p->next->v[i] + at;
        UNROLL
        for (int line = 0; line < TURN_BYTES; line += LINE)
            _mm_prefetch(k + line, _MM_HINT_T1);
        UNROLL
        for (int line = 0; line < TURN_BYTES; line += LINE)
            _mm_prefetch(v + line, _MM_HINT_T1);
    }
}

/* Called at steps of unlike cost; the costs of a tile add up to its turns * 4096 / share. */
WIDE_INLINE void prefetch_turns(block_prefetcher *p, int32_t cost)
{
    p->credit += cost * p->share;
    for (; p->credit >= 4096; p->credit -= 4096)
        prefetch_turn(p);
}

/* What the products read and write. */
typedef struct half_products {
    ALIGNED uint32_t q[DECODE_ROWS][Q_STRIDE]; /* channels 4 i and + 2; from Q_ODD on + 1 and + 3 */
    ALIGNED _Float16 s[DECODE_ROWS][S_STRIDE]; /* S, keys in order */
    ALIGNED uint32_t p[DECODE_ROWS][P_STRIDE]; /* of four keys: 0 and 2, 1 and 3 */
    ALIGNED _Float16 t[DECODE_ROWS][T_STRIDE]; /* T: a channel's two halves side by side */
    const tile_blocks *tile;
    block_prefetcher ahead;
    int32_t head_dim, vectors; /* vectors of 16 channels */
    __m512i seen_k, seen_v;
} half_products;

/* sum += a b. In assembly: gcc 12 copies accumulators around the intrinsic. */
WIDE_INLINE void half_add(__m512h *sum, __m512h a, __m512h b)
{
    __asm__("vfmadd231ph %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}

/* The even or odd codes of a line times 2^-8: multiplied by 128, their bytes are sign-extended and
 * moved to where binary16 has them, but for a second sign bit. */
WIDE_INLINE __m512h halves_of(__m512i line, int odd)
{
    const __m512i factor = _mm512_set1_epi16(odd ? (short)0x8000 : 0x0080);
    return _mm512_castsi512_ph(
        _mm512_and_si512(_mm512_maddubs_epi16(factor, line), _mm512_set1_epi16((short)0xbf80)));
}

WIDE_INLINE __m512h broadcast_pair(const uint32_t *pair)
{
    return _mm512_castsi512_ph(_mm512_set1_epi32((int32_t)*pair));
}

WIDE_INLINE __m512h add_halves(__m512h a, __m512h b)
{
    return _mm512_add_ph(a, b);
}

/* 32 keys' S in order, from the halves of 16 and 16 keys. */
WIDE_INLINE __m512i sum_of_halves(__m512h a, __m512h b)
{
    const __m512i order =
        _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                         22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __mmask32 odd = 0xaaaaaaaa;
    const __m512i first = _mm512_castph_si512(a), second = _mm512_castph_si512(b);
    const __m512i kept = _mm512_mask_blend_epi16(odd, first, second);
    const __m512i other = _mm512_ror_epi32(_mm512_mask_blend_epi16(odd, second, first), 16);
    const __m512h sums = add_halves(_mm512_castsi512_ph(kept), _mm512_castsi512_ph(other));
    return _mm512_permutexvar_epi16(order, _mm512_castph_si512(sums));
}

/*
 * S of some rows and 16 `blocks` keys of the tile. 32 channels are added up in the two halves of a
 * dword, 16 in each, then these sums, then the halves. rows, blocks, head_dim (if not 0) and fetch
 * are constants.
 */
WIDE_INLINE void score_blocks(half_products *s, int rows, int blocks, int32_t head_dim, bool fetch,
                              int32_t row, int32_t block)
{
    const int32_t fours = (head_dim ? head_dim : s->head_dim) / 4;
    const uint8_t *line[4], *near[4];
    __m512h total[GROUP_ROWS][4];
    __m512i seen = s->seen_k;
    UNROLL
    for (int b = 0; b < blocks; b++) {
        line[b] = s->tile->k[block + b];
        near[b] = block + blocks < TILE_BLOCKS ? s->tile->k[block + blocks + b] : s->tile->v[b];
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int b = 0; b < blocks; b++)
        total[r][b] = _mm512_setzero_ph();
    for (int32_t i = 0; i < fours; i += CHAIN) {
        __m512h sum[GROUP_ROWS][4];
        if (fetch) prefetch_turns(&s->ahead, blocks * CHAIN * (LINE_COST + ROW_COST * rows));
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
        for (int b = 0; b < blocks; b++)
            sum[r][b] = _mm512_setzero_ph();
        UNROLL
        for (int j = 0; j < CHAIN; j++) {
            if (!head_dim && i + j >= fours) break;
            UNROLL
            for (int odd = 0; odd < 2; odd++) {
                const uint32_t *q = &s->q[row][i + j + odd * Q_ODD];
                __m512h half[4];
                UNROLL
                for (int b = 0; b < blocks; b++) {
                    const __m512i raw = _mm512_loadu_si512(line[b] + (i + j) * LINE);
                    half[b] = halves_of(raw, odd);
                    if (!fetch || odd) continue;
                    watch_key(&seen, raw);
                    _mm_prefetch(near[b] + (i + j) * LINE, _MM_HINT_T0);
                }
                UNROLL
                for (int r = 0; r < rows; r++) {
                    const __m512h two = broadcast_pair(q + r * Q_STRIDE);
                    UNROLL
                    for (int b = 0; b < blocks; b++)
                        half_add(&sum[r][b], half[b], two);
                }
            }
        }
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
        for (int b = 0; b < blocks; b++)
            total[r][b] = add_halves(total[r][b], sum[r][b]);
    }
    s->seen_k = seen;
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int b = 0; b < blocks; b += 2)
        _mm512_store_si512(&s->s[row + r][(block + b) * BLOCK_KEYS],
                           sum_of_halves(total[r][b], total[r][b + 1]));
}

/*
 * T of some rows and vectors of 16 channels, from `vector` on, for the 64 keys from `block` on.
 * begin: T starts at 0. rows, vectors and fetch are constants.
 */
WIDE_INLINE void sum_blocks(half_products *s, int rows, int vectors, bool fetch, bool begin,
                            int32_t row, int32_t vector, int32_t block)
{
    const int32_t quad_bytes = s->vectors * LINE;
    _Float16 *t = &s->t[row][vector * LANES];
    __m512h sum[GROUP_ROWS][8];
    __m512i seen = s->seen_v;
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int i = 0; i < vectors; i++)
        sum[r][i] = begin ? _mm512_setzero_ph() : _mm512_load_ph(t + r * T_STRIDE + i * LANES);
    for (int b = 0; b < STEP_BLOCKS; b++) {
        const int32_t after = block + b + STEP_BLOCKS;
        const uint8_t *line = s->tile->v[block + b] + vector * LINE;
        const uint8_t *near = after < TILE_BLOCKS ? s->tile->v[after] : s->ahead.next->k[b];
        const uint32_t *p = &s->p[row][(block + b) * (BLOCK_KEYS / 2)];
        near += vector * LINE;
        if (fetch) prefetch_turns(&s->ahead, 4 * vectors * (LINE_COST + ROW_COST * rows));
        UNROLL
        for (int quad = 0; quad < 4; quad++) {
            UNROLL
            for (int odd = 0; odd < 2; odd++) {
                __m512h half[8];
                UNROLL
                for (int i = 0; i < vectors; i++) {
                    const int32_t at = quad * quad_bytes + i * LINE;
                    const __m512i raw = _mm512_loadu_si512(line + at);
                    half[i] = halves_of(raw, odd);
                    if (!fetch || odd) continue;
                    watch_value(&seen, raw);
                    _mm_prefetch(near + at, _MM_HINT_T0);
                }
                UNROLL
                for (int r = 0; r < rows; r++) {
                    const __m512h two = broadcast_pair(p + r * P_STRIDE + 2 * quad + odd);
                    UNROLL
                    for (int i = 0; i < vectors; i++)
                        half_add(&sum[r][i], half[i], two);
                }
            }
        }
    }
    s->seen_v = seen;
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int i = 0; i < vectors; i++)
        _mm512_store_ph(t + r * T_STRIDE + i * LANES, sum[r][i]);
}

#endif
