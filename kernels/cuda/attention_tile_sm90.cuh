/*
 * Tiles of the Hopper attention kernels: how many rows and keys a block works on, what shared
 * memory holds, and which limit decides.
 *
 *     block    producer warpgroup (TMA) + 2 consumer warpgroups of 64 query rows each
 *     shared   barriers | Q [2][64 rows] | K ring [STAGES][KV rows] | V ring [STAGES][D rows of KV]
 *              | scales ring | parked: 80 bytes of each consumer thread
 *
 * Rows wider than 128 bytes are cut into chunks of 128, which is the widest swizzle: a tile of R
 * rows is [chunks][R][128 bytes], each chunk swizzled by itself and loaded by one TMA box.
 */
#ifndef HEADROOM_ATTENTION_TILE_SM90_CUH
#define HEADROOM_ATTENTION_TILE_SM90_CUH

#include "attention_sm90.h"
#include "launch.cuh"

namespace attention_sm90
{

enum class Recipe { bf16, fp8, int8, int8_fp8 };

constexpr int CONSUMERS = 2, ROWS = 64 * CONSUMERS, THREADS = 128 * (1 + CONSUMERS);

/* 128 * 24 + 256 * 240 = 64512 of the 65536 registers. */
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;

/* A tile in shared memory, of `rows` rows of `row_bytes`. */
struct Area {
    int rows, row_bytes;
    HR_HOST_DEVICE constexpr int width() const { return row_bytes < 128 ? row_bytes : 128; }
    HR_HOST_DEVICE constexpr int chunks() const { return row_bytes / width(); }
    HR_HOST_DEVICE constexpr int bytes() const { return rows * row_bytes; }
    HR_HOST_DEVICE constexpr hopper::Swizzle swizzle() const
    {
        return width() == 128 ? hopper::Swizzle::b128 : hopper::Swizzle::b64;
    }
};

struct TileChoice {
    int kv;       /* keys */
    int stages;   /* of the K and V rings */
    bool overlap; /* Q K^T of the next tile runs beside P V of this one */
    int columns;  /* of O that P V computes at once */
};

/*
 * Registers a consumer thread holds, of 240: S kv / 2, P kv / 8 (kv / 4 in BF16), O D / 2, and R,
 * the product of one tile before it is added to O, columns / 2 (none in BF16, which accumulates in
 * O). The rest is for row statistics, addresses and the softmax at work; what a loop needs once a
 * tile is parked in shared memory.
 *
 *     8 bit  D  64, overlap:   S 64 + P 16 + R 32 + O  32 = 144
 *            D 128, overlap:   S 64 + P 16 + R 64 + O  64 = 208   the register limit of kv 128
 *            D 256: S (64) and R live after each other: 64 + P 16 + O 128 = 208; how wide R
 *            may be without spills is ptxas's to say
 *     BF16   D  64, overlap:   S 64 + P 32 +        O  32 = 128
 *            D 128, overlap:   S 64 + P 32 +        O  64 = 160   shared memory allows 2 stages
 *            D 256, overlap:   S 32 + P 16 +        O 128 = 176   shared memory: kv 64, 2 stages
 *
 * kv 128 is also what exact INT8 allows: 255 * 127 * 128 = 4,145,280 < 2^22.
 */
HR_HOST_DEVICE constexpr TileChoice choose_tile(Recipe recipe, int d, bool softcap)
{
    if (recipe == Recipe::bf16) return {d == 256 ? 64 : 128, d == 64 ? 4 : 2, true, d};
    /* D 256: two stages of K, V and scales are 132 KiB, a third would make 231 with Q. */
    if (d == 256) return {128, 2, false, softcap ? 32 : recipe == Recipe::int8 ? 128 : 64};
    return {128, 4, true, d};
}

template <Recipe RECIPE, int D, bool SOFTCAP> struct Tile {
    static constexpr TileChoice CHOICE = choose_tile(RECIPE, D, SOFTCAP);
    static constexpr int KV = CHOICE.kv, STAGES = CHOICE.stages, COLUMNS = CHOICE.columns;
    static constexpr bool OVERLAP = CHOICE.overlap;
    /* int8: ptxas delays conversions of the product past the next one, where nothing overlaps. */
    static constexpr bool MAGIC_PRODUCT = RECIPE == Recipe::int8 && !OVERLAP;
    static constexpr int ELEMENT = RECIPE == Recipe::bf16 ? 2 : 1; /* bytes of Q, K, V and P */
    static constexpr bool TOKEN_SCALES = RECIPE == Recipe::int8 || RECIPE == Recipe::int8_fp8;

    static constexpr Area Q = {64, D *ELEMENT}; /* of one consumer */
    static constexpr Area K = {KV, D *ELEMENT};
    static constexpr Area V = {D, KV *ELEMENT};
    static constexpr uint32_t SCALE_BYTES = TOKEN_SCALES            ? 4 * HR_SM90_TILE_SCALES
                                            : RECIPE == Recipe::fp8 ? 4 * HR_SM90_BLOCK_SCALES
                                                                    : 0;

    static constexpr uint32_t PARKED_BYTES = CONSUMERS * 128 * 16;

    /* Offsets from shared_base: mbarriers first, then tiles at multiples of 1024. */
    static constexpr uint32_t Q_FULL = 0, Q_EMPTY = 8, K_FULL = 16, K_EMPTY = K_FULL + 8 * STAGES,
                              V_FULL = K_EMPTY + 8 * STAGES, V_EMPTY = V_FULL + 8 * STAGES;
    static constexpr uint32_t Q_AT = 1024, K_AT = Q_AT + CONSUMERS * Q.bytes(),
                              V_AT = K_AT + STAGES * K.bytes(),
                              SCALES_AT = V_AT + STAGES * V.bytes(),
                              PARKED_AT = SCALES_AT + STAGES * SCALE_BYTES,
                              SHARED_BYTES = PARKED_AT + 5 * PARKED_BYTES;

    static_assert((STAGES & (STAGES - 1)) == 0, "a counter gives stage and parity by its bits");
    static_assert(V_EMPTY + 8 * STAGES <= Q_AT, "the barriers fit in front of Q");
    static_assert(SHARED_BYTES <= 227 * 1024, "a block has at most 227 KiB of shared memory");
    static_assert(RECIPE == Recipe::bf16 || KV == HR_SM90_TILE_KV, "a tile of scales a tile");
    static_assert(HR_SM90_TILE_KV % KV == 0, "a tile of V is a whole number of these");
    static_assert(RECIPE != Recipe::int8 || 255 * 127 * KV < 1 << 22, "P V in the magic number");
    static_assert(!TOKEN_SCALES || 127 * 127 * D < 1 << 22, "Q K^T in the magic number");
};

} // namespace attention_sm90

#endif
