/*
 * What a task of the integer kernels on AVX-512 VNNI holds in its scratch: 96 rows, in blocks of
 * twelve, which are two groups of the six rows that the products take. A block's scalars (maximum,
 * exponent, factors) are one vector, so that what a tile does to them costs the same for twelve
 * rows as for one.
 */
#ifndef HEADROOM_INTEGER_TASK_AVX512VNNI_H
#define HEADROOM_INTEGER_TASK_AVX512VNNI_H

#include "group_scales_avx512vnni.h"
#include "integer_body_avx512vnni.h"
#include "integer_micro_avx512vnni.h"
#include "integer_reduce_avx512vnni.h"
#include "integer_vector_avx512vnni.h"

enum {
    ROWS = HR_MICRO_ROWS,
    BLOCK = HR_REDUCE_ROWS,
    GROUPS = BLOCK / ROWS,
    BLOCKS = HR_INTEGER_VNNI_ROWS / BLOCK,
    SUBTILE = HR_INTEGER_VNNI_TILE,
    SUBTILES = HR_INTEGER_TILE / SUBTILE,
    LANES = 16,           /* of a block's scalars: the first twelve are rows */
    Q_PADDING = ROWS * 64 /* bytes: codes are stored 64 channels at a time */
};

/* Which keys a group's rows see. */
typedef struct group_range {
    int32_t any_lo, any_hi;       /* keys that some row of the group sees are in here */
    int32_t common_lo, common_hi; /* keys that every row sees are those in here */
} group_range;

/* A block's rows; rows past the end of the task repeat the last one. */
typedef struct block_state {
    ALIGNED float l[BLOCK][HR_INTEGER_LANES];
    ALIGNED float m[LANES], e[LANES], a[LANES];
    ALIGNED double factor[LANES];
    ALIGNED float bias[LANES];   /* natural units; where logits are capped */
    ALIGNED int32_t init[LANES]; /* bits of 1.5 * 2^23 less 128 times the sum of q */
    ALIGNED int32_t group_init[MAX_GROUPS][LANES]; /* -128 times that of a group of K's channels */
    ALIGNED int32_t lo[LANES], hi[LANES]; /* keys a row sees; none in the lanes that are no rows */
    group_range range[GROUPS];
    __mmask16 rows; /* lanes that are rows of the task */
    bool fresh;     /* O is not there yet */
} block_state;

/* A block on its way through the steps of one tile, as far as two blocks need it at a time. */
typedef struct passage {
    micro_scalars o;                         /* alpha and beta of O */
    ALIGNED float alpha[LANES], beta[LANES]; /* of l */
    ALIGNED int32_t top[LANES];              /* TOP + N, in both words */
    block_state *block;
    int32_t first_row;
    bool first;                     /* the block's first tile: O becomes T */
    int begin[GROUPS], end[GROUPS]; /* subtiles [begin, end) hold keys that some row sees */
    int tail[GROUPS]; /* those of the last subtile are in its first 16 * tail keys; 4: anywhere */
} passage;

/*
 * The columns of a KV head's first 16384 keys as they were last prepared, so that not every task of
 * the head does it again: 20 bytes a key. Tiles further on share the last place.
 */
enum { KEPT_TILES = 64 };

typedef struct kept_columns {
    uint64_t kv_id; /* whose: hr_kernel_args.kv_id */
    uint64_t tiles; /* bit t: those of tile t are there */
    tile_exponents exponents[KEPT_TILES + 1];
    tile_columns columns[KEPT_TILES + 1][SUBTILES];
} kept_columns;

typedef struct task {
    passage passage[2];
    /* A block's y in the order of micro_qk_logits, and its P. */
    ALIGNED uint16_t y[GROUPS][SUBTILES][ROWS][SUBTILE];
    ALIGNED uint8_t p[GROUPS][SUBTILES][ROWS][SUBTILE];
    /* Where V's scales are in groups: e, and e_ijg of one group. */
    ALIGNED uint16_t weight[GROUPS][SUBTILES][ROWS][SUBTILE];
    ALIGNED uint16_t shared[GROUPS][SUBTILES][ROWS][SUBTILE];
    ALIGNED uint16_t lanes[BLOCK][32]; /* the block's least y by lanes */
    ALIGNED uint16_t unused_lanes[ROWS][32];
    tile_groups groups;
    ALIGNED uint8_t
        p_low[GROUPS][SUBTILES][ROWS][SUBTILE];   /* of P in I16; p is then its high bits */
    ALIGNED float exact[SUBTILES][ROWS][SUBTILE]; /* a group's y in FP32, where it is needed */
    ALIGNED float k_scale[HR_INTEGER_TILE], v_scale[HR_INTEGER_TILE];
    block_state block[BLOCKS];
    const hr_kernel_args *args;
    int32_t head_dim, channels; /* channels: head_dim rounded up to 16 */
    int8_t width[HR_INTEGER_MAX_HEAD_DIM / HR_MICRO_COLUMNS + 1]; /* of column blocks, in vectors */
    int32_t blocks;
    int32_t first;               /* the tile's first key */
    const tile_columns *columns; /* [SUBTILES] of the tile, in kept */
    tile_exponents tile;
    bool half;         /* the CPU has AVX512-FP16 */
    bool precise;      /* P in I16 */
    bool exact_logits; /* logits are made in FP32: softcap, ALiBi or K's scales in groups */
    int32_t k_groups, v_groups; /* of channels with a scale each, 16 or more; 0: none */
    double octave;              /* units of the factors' a: 1024, or 1 where logits are capped */
    hr_integer_cap cap;
    float slope; /* of ALiBi, in units */
    hr_integer_vnni_tile codes;
    int32_t *q; /* [blocks * 2][head_dim / 4][6] dwords */
    float *o;   /* [blocks * 12][channels] */
    kept_columns kept;
} task;

/* The rows of the block that see a key of the tile, as lanes. */
INLINE __mmask16 rows_that_see(const task *t, const block_state *block)
{
    const __m512i first = _mm512_set1_epi32(t->first);
    const __m512i last = _mm512_set1_epi32(t->first + HR_INTEGER_TILE);
    const __m512i lo = _mm512_max_epi32(_mm512_load_si512(block->lo), first);
    const __m512i hi = _mm512_min_epi32(_mm512_load_si512(block->hi), last);
    return _mm512_cmplt_epi32_mask(lo, hi);
}

#endif
