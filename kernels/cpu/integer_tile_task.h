/*
 * What a task of the integer kernels on short vectors (integer_tile.h) holds in its scratch: up to
 * 96 rows, one tile of keys in the layout that its products read, and one group of rows on its way
 * through that tile.
 *
 * Products take operands by dwords of CODES codes (4 bytes or 2 words), 16 columns at a time:
 *
 *     K  [16 blocks of 16 keys][head_dim / CODES][16 keys][CODES channels]
 *     V  [channels / 16][256 / CODES][16 channels][CODES keys]
 *
 * Keys within a chunk of 32, in V and wherever logits are 16 bits wide, have the packed order 0 -
 * 3, 16 - 19, 4 - 7, 20 - 23, ...: what packing two vectors gives, and what hr_integer_lane sums.
 */
#ifndef HEADROOM_INTEGER_TILE_TASK_H
#define HEADROOM_INTEGER_TILE_TASK_H

#include "integer_body.h"

enum {
    TASK_ROWS = 96, /* tile_q */
    CHUNK = 32,     /* keys that are packed together */
    CHUNKS = HR_INTEGER_TILE / CHUNK,
    BLOCK = 16, /* columns of a product */
    SLACK = 32, /* codes that loads may read past the end of rows */
    MAX_GROUPS = HR_INTEGER_MAX_HEAD_DIM / BLOCK
};

_Static_assert((int)BLOCK == WIDTH * (int)VECS && BLOCK == (int)HR_INTEGER_LANES,
               "products and sums share VECS");
_Static_assert(PAIR == 1 || (K_OFFSET == 0 && V_OFFSET == 0), "squares of sums start at 0");
_Static_assert(TASK_ROWS % ROWS == 0, "a task is whole groups");

/* Where in its chunk the key at `position` of the packed order stands. */
static inline int32_t packed_key(int32_t position)
{
    return position / 8 * 4 + position % 8 / 4 * 16 + position % 4;
}

/*
 * Where code `at`, a multiple of CODES, of a row is in an operand of rows `depth` codes long that
 * stand PAIR by PAIR: [rows / PAIR][depth / CODES][PAIR][CODES].
 */
static inline product_code *row_codes(product_code *rows, int32_t depth, int32_t row, int32_t at)
{
    return rows + (int64_t)(row / PAIR * PAIR) * depth + at * PAIR + row % PAIR * CODES;
}

typedef struct row_state {
    float l[HR_INTEGER_LANES];
    const hr_kernel_args *args; /* its head's */
    int32_t query;
    double factor; /* c_i, without log2(e) when capped */
    double bias;   /* natural units */
    float m;
    int32_t e;
    int32_t lo, hi; /* keys of the range that the row sees */
    int32_t init;   /* what its products with K start at */
} row_state;

/* Step 1 for the keys of one tile. */
typedef struct tile_scales {
    int32_t f, e;
    float h; /* H */
    bool even, wide;
    float k[HR_INTEGER_TILE], u[HR_INTEGER_TILE];
    int16_t sum[HR_INTEGER_TILE], rest[HR_INTEGER_TILE]; /* A_j, B_j in packed order */
    float k_group[MAX_GROUPS][HR_INTEGER_TILE];          /* k_jg */
    int16_t share[MAX_GROUPS][HR_INTEGER_TILE];          /* G_jg in packed order */
    float largest[MAX_GROUPS];                           /* C_g times 32768 / 32767 */
} tile_scales;

typedef struct task {
    tile_scales tile;
    int32_t (*s)[HR_INTEGER_TILE];          /* S of a group's rows; K in groups: the bits of x */
    int16_t (*weight)[HR_INTEGER_TILE];     /* their e, where V is in groups, in packed order */
    product_code (*p)[HR_INTEGER_TILE];     /* their P, in packed order; in I16 its upper 8 bits */
    product_code (*p_low)[HR_INTEGER_TILE]; /* and its lower 7, where codes are bytes */
    int32_t *p_init;                        /* what their products with V start at */
    float *alpha_o, *beta_o;
    uint16_t y[HR_INTEGER_TILE];  /* of one row, in packed order */
    float exact[HR_INTEGER_TILE]; /* y of one row in FP32, where it is needed */
    int16_t packed_keys[CHUNK];   /* packed_key */
    row_state *row;               /* all rows */
    const hr_kernel_args *args;
    hr_integer_expand expand_k, expand_v;
    int32_t head_dim, channels; /* channels: head_dim rounded up to 16 */
    int32_t k_groups, v_groups; /* of channels with a scale each, as 16 or more; 0: none */
    bool precise;               /* P in I16 */
    int32_t first;              /* the tile's first key */
    float *o;                   /* [96][channels] */
    product_code *q;            /* [96][head_dim] */
    product_code *k, *v;        /* the tile */
    int16_t *wide;              /* [256][head_dim] codes as they are expanded */
    product_code *narrow;       /* and as products take them */
} task;

/* The next `bytes` of the scratch at `base`, or NULL where it is only measured. */
static inline void *carve(char *base, size_t *used, size_t bytes)
{
    void *part = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return part;
}

/* Lays the arrays of a task out behind it, unless base, where it stands, is NULL; bytes of all. */
static inline size_t lay_out_task(task *t, char *base, int32_t head_dim)
{
    const size_t row = (size_t)head_dim, channels = (row + BLOCK - 1) / BLOCK * BLOCK;
    const size_t values = HR_INTEGER_TILE * row + SLACK;
    size_t used = 0;
    carve(base, &used, sizeof *t);
    t->s = carve(base, &used, ROWS * sizeof *t->s);
    t->weight = carve(base, &used, ROWS * sizeof *t->weight);
    t->p = carve(base, &used, ROWS * sizeof *t->p);
    t->p_low = carve(base, &used, ROWS * sizeof *t->p_low);
    t->p_init = carve(base, &used, ROWS * sizeof *t->p_init);
    t->alpha_o = carve(base, &used, ROWS * sizeof *t->alpha_o);
    t->beta_o = carve(base, &used, ROWS * sizeof *t->beta_o);
    t->row = carve(base, &used, TASK_ROWS * sizeof *t->row);
    t->o = carve(base, &used, TASK_ROWS * channels * sizeof *t->o);
    t->q = carve(base, &used, TASK_ROWS * row * sizeof *t->q);
    t->k = carve(base, &used, HR_INTEGER_TILE * row * sizeof *t->k);
    t->v = carve(base, &used, HR_INTEGER_TILE * channels * sizeof *t->v);
    t->wide = carve(base, &used, values * sizeof *t->wide);
    t->narrow = carve(base, &used, values * sizeof *t->narrow);
    return used;
}

#endif
