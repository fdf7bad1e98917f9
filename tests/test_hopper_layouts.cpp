/*
 * Fragment layouts of wgmma, ldmatrix and stmatrix, and shared-memory layouts of wgmma and TMA,
 * against the formulas of the PTX ISA 9.0 manual, written out here once more. Results are exact.
 */
#include "launch.cuh"

#include <criterion/criterion.h>
#include <random>
#include <vector>

using hopper::Swizzle;
using hopper_emulator::report;

namespace
{

/*
 * Byte of a K-major tile in shared memory where the 16-byte column `c` of row `r` starts, for tiles
 * as wide as their swizzle (9.7.15.5.1.2, figures of the K-major layouts). Without swizzle: 8 x 16
 * byte core matrices, here consecutive along k, then along the rows.
 */
uint32_t place_of(Swizzle swizzle, int r, int c)
{
    switch (swizzle) {
    case Swizzle::b128:
        return (uint32_t)(128 * r + 16 * (c ^ r % 8));
    case Swizzle::b64:
        return (uint32_t)(64 * r + 16 * (c ^ r / 2 % 4));
    case Swizzle::b32:
        return (uint32_t)(32 * r + 16 * (c ^ r / 4 % 2));
    case Swizzle::none:
        break;
    }
    return (uint32_t)(256 * (r / 8) + 128 * c + 16 * (r % 8));
}

int width_of(Swizzle swizzle)
{
    return swizzle == Swizzle::none ? 32 : swizzle_bytes(swizzle);
}

uint64_t descriptor_of(uint32_t tile, int step, Swizzle swizzle)
{
    return swizzle == Swizzle::none ? hopper::matrix_descriptor(tile, 128, 256, swizzle)
                                    : hopper::matrix_descriptor(tile + 32 * step, swizzle);
}

enum class Type { e4m3, s8, u8s8, bf16 };

template <Type TYPE> struct Element {
    using D = int32_t;
    static constexpr int bytes = 1;
};
template <> struct Element<Type::e4m3> {
    using D = float;
    static constexpr int bytes = 1;
};
template <> struct Element<Type::bf16> {
    using D = float;
    static constexpr int bytes = 2;
};

/* Rows of 128 bytes, of which a tile's width is used. */
struct Operands {
    uint8_t a[64][128], b[256][128];
    uint32_t c[64][256], d[64][256]; /* bits */
};

template <Type TYPE, class D, class A> void multiply(D &d, const A &a, uint64_t b, bool accumulate)
{
    if constexpr (TYPE == Type::e4m3)
        hopper::wgmma_e4m3(d, a, b, accumulate);
    else if constexpr (TYPE == Type::s8)
        hopper::wgmma_s8(d, a, b, accumulate);
    else if constexpr (TYPE == Type::u8s8)
        hopper::wgmma_u8s8(d, a, b, accumulate);
    else
        hopper::wgmma_bf16(d, a, b, accumulate);
}

/*
 * 9.7.15.5.1.1: row and column of element i of A in a thread of warp w, lane l. 8-bit types: i in
 * 0..15; 16-bit: 0..7.
 */
int a_row(int w, int l, int i, int bytes)
{
    const bool upper = bytes == 1 ? i / 4 % 2 == 1 : i / 2 % 2 == 1;
    return 16 * w + (l >> 2) + (upper ? 8 : 0);
}

int a_column(int l, int i, int bytes)
{
    if (bytes == 1) return (l % 4) * 4 + (i & 3) + (i < 8 ? 0 : 16);
    return (l % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8);
}

int d_row(int w, int l, int i)
{
    return 16 * w + (l >> 2) + (i % 4 < 2 ? 0 : 8);
}
int d_column(int l, int i)
{
    return 8 * (i / 4) + (l % 4) * 2 + (i & 1);
}

template <Type TYPE, int N>
__global__ void product(Operands *o, Swizzle swizzle, bool a_in_registers)
{
    using namespace hopper;
    const uint32_t a_tile = shared_base(), b_tile = a_tile + 64 * 128;
    const int t = threadIdx.x, w = t / 32, l = t % 32, columns = width_of(swizzle) / 16;
    for (int i = t; i < 64 * columns; i += 128)
        store_shared(a_tile + place_of(swizzle, i / columns, i % columns),
                     *(const uint4 *)&o->a[i / columns][i % columns * 16]);
    for (int i = t; i < N * columns; i += 128)
        store_shared(b_tile + place_of(swizzle, i / columns, i % columns),
                     *(const uint4 *)&o->b[i / columns][i % columns * 16]);
    fence_proxy_async();
    __syncthreads();

    constexpr int bytes = Element<TYPE>::bytes;
    Registers<typename Element<TYPE>::D, N / 2> d;
    Registers<uint32_t, 4> a[4];
    for (int i = 0; i < N / 2; i++)
        d[i] = hopper_emulator::from_word<typename Element<TYPE>::D>(
            o->c[d_row(w, l, i)][d_column(l, i)]);
    for (int step = 0; step < columns / 2; step++)
        for (int r = 0; r < 4; r++) {
            uint32_t word = 0;
            for (int i = r * 4 / bytes; i < (r + 1) * 4 / bytes; i++) {
                uint32_t element = 0;
                std::memcpy(&element,
                            &o->a[a_row(w, l, i, bytes)][32 * step + bytes * a_column(l, i, bytes)],
                            bytes);
                word |= element << 8 * bytes * (i % (4 / bytes));
            }
            a[step][r] = word;
        }
    wgmma_fence(d, a);
    for (int step = 0; step < columns / 2; step++) {
        const uint64_t b = descriptor_of(b_tile, step, swizzle);
        if (a_in_registers)
            multiply<TYPE>(d, a[step], b, true);
        else
            multiply<TYPE>(d, descriptor_of(a_tile, step, swizzle), b, true);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; i++)
        o->d[d_row(w, l, i)][d_column(l, i)] = hopper_emulator::to_word(d[i]);
}

double value_of(Type type, const uint8_t *p, bool is_a)
{
    if (type == Type::s8 || (type == Type::u8s8 && !is_a)) return (int8_t)*p;
    if (type == Type::u8s8) return *p;
    if (type == Type::bf16)
        return hopper_emulator::from_word<float>((uint32_t)p[0] << 16 | (uint32_t)p[1] << 24);
    const int exponent = *p >> 3 & 15, fraction = *p & 7;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    return *p & 0x80 ? -magnitude : magnitude;
}

/* Small whole and half numbers, so that every sum is exact. */
void fill(Operands &o, Type type)
{
    std::mt19937 random(3);
    const auto element = [&](uint8_t *p) {
        if (type == Type::bf16) {
            const float x = (float)((int)(random() % 31) - 15) / 2;
            const uint32_t word = hopper_emulator::to_word(x) >> 16;
            p[0] = (uint8_t)word;
            p[1] = (uint8_t)(word >> 8);
        } else {
            p[0] = (uint8_t)random();
            p[1] = (uint8_t)random();
            if (type == Type::e4m3) /* 0.25 to 3.75 and their negatives */
                for (int i = 0; i < 2; i++)
                    p[i] = (uint8_t)((p[i] & 0x9F) | 0x28) & 0xBF;
        }
    };
    for (auto &row : o.a)
        for (int i = 0; i < 128; i += 2)
            element(row + i);
    for (auto &row : o.b)
        for (int i = 0; i < 128; i += 2)
            element(row + i);
    for (auto &row : o.c)
        for (uint32_t &bits : row) {
            const int x = (int)(random() % 2001) - 1000;
            bits = type == Type::s8 || type == Type::u8s8 ? hopper_emulator::to_word(x)
                                                          : hopper_emulator::to_word((float)x);
        }
}

template <Type TYPE, int N> void check_product()
{
    using D = typename Element<TYPE>::D;
    static Operands o;
    fill(o, TYPE);
    for (Swizzle swizzle : {Swizzle::b128, Swizzle::b64, Swizzle::b32, Swizzle::none})
        for (bool a_in_registers : {false, true}) {
            std::memset(o.d, 0xFF, sizeof o.d);
            cudaError_t error = hopper::launch(product<TYPE, N>, 1, 128, (64 + N) * 128, nullptr,
                                               &o, swizzle, a_in_registers);
            cr_assert(error == cudaSuccess, "%s", report().text().c_str());
            for (int i = 0; i < 64; i++)
                for (int j = 0; j < N; j++) {
                    double sum = (double)hopper_emulator::from_word<D>(o.c[i][j]);
                    for (int k = 0; k < width_of(swizzle); k += Element<TYPE>::bytes)
                        sum += value_of(TYPE, &o.a[i][k], true) * value_of(TYPE, &o.b[j][k], false);
                    const D got = hopper_emulator::from_word<D>(o.d[i][j]);
                    cr_assert((double)got == sum,
                              "N %d swizzle %d registers %d: D[%d][%d] is %g, expected %g", N,
                              (int)swizzle, a_in_registers, i, j, (double)got, sum);
                }
        }
}

template <Type TYPE> void check_type()
{
    check_product<TYPE, 32>();
    check_product<TYPE, 64>();
    check_product<TYPE, 96>();
    check_product<TYPE, 128>();
    check_product<TYPE, 160>();
    check_product<TYPE, 192>();
    check_product<TYPE, 224>();
    check_product<TYPE, 256>();
}

} // namespace

Test(hopper_layouts, wgmma_e4m3)
{
    check_type<Type::e4m3>();
}
Test(hopper_layouts, wgmma_s8)
{
    check_type<Type::s8>();
}
Test(hopper_layouts, wgmma_u8s8)
{
    check_type<Type::u8s8>();
}
Test(hopper_layouts, wgmma_bf16)
{
    check_type<Type::bf16>();
}

/* Bits of the descriptor: "Matrix Descriptor Format". */
Test(hopper_layouts, descriptor)
{
    const uint64_t d = hopper::matrix_descriptor(0x12340, 0x100, 0x400, Swizzle::b64);
    cr_expect_eq(d & 0x3FFF, 0x1234);
    cr_expect_eq(d >> 16 & 0x3FFF, 0x10);
    cr_expect_eq(d >> 32 & 0x3FFF, 0x40);
    cr_expect_eq(d >> 62, 2);
    cr_expect_eq(hopper::matrix_descriptor(0, Swizzle::b128) >> 62, 1);
    cr_expect_eq(hopper::matrix_descriptor(0, Swizzle::b32) >> 62, 3);
    cr_expect_eq(hopper::matrix_descriptor(0, Swizzle::b128) >> 32 & 0x3FFF, 64);
}

namespace
{

/* Loads a box into shared memory and copies its bytes out as they lie there. */
__global__ void load(const __grid_constant__ CUtensorMap map, int rank, int4 c, uint32_t bytes,
                     uint8_t *out)
{
    using namespace hopper;
    const uint32_t mbarrier = shared_base(), tile = mbarrier + 1024;
    if (threadIdx.x == 0) {
        mbarrier_init(mbarrier, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(mbarrier, bytes);
        if (rank == 2)
            tma_load_2d(tile, &map, mbarrier, c.x, c.y);
        else if (rank == 3)
            tma_load_3d(tile, &map, mbarrier, c.x, c.y, c.z);
        else
            tma_load_4d(tile, &map, mbarrier, c.x, c.y, c.z, c.w);
    }
    __syncthreads();
    mbarrier_wait(mbarrier, 0);
    for (uint32_t i = threadIdx.x; i < bytes; i += blockDim.x)
        out[i] = load_shared<uint8_t>(tile + i);
}

/* The reverse: fills shared memory with bytes as they shall lie there, and stores the box. */
__global__ void store(const __grid_constant__ CUtensorMap map, int rank, int4 c, uint32_t bytes,
                      const uint8_t *in)
{
    using namespace hopper;
    const uint32_t tile = shared_base() + 1024;
    for (uint32_t i = threadIdx.x; i < bytes; i += blockDim.x)
        store_shared<uint8_t>(tile + i, in[i]);
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (rank == 2)
            tma_store_2d(&map, tile, c.x, c.y);
        else if (rank == 3)
            tma_store_3d(&map, tile, c.x, c.y, c.z);
        else
            tma_store_4d(&map, tile, c.x, c.y, c.z, c.w);
        bulk_commit();
        bulk_wait<0>();
    }
}

/* A tensor of rank 4 of bytes or words, and boxes at its edges and beyond. */
void check_boxes(int element, Swizzle swizzle, int rank)
{
    const int sizes[4] = {144 / element, 21, 3, 2};
    const uint64_t map_sizes[4] = {(uint64_t)sizes[0], 21, 3, 2};
    const uint64_t strides[4] = {0, 160, 160 * 24, 160 * 24 * 4}; /* with gaps */
    const uint32_t row = swizzle == Swizzle::none ? 48 : (uint32_t)swizzle_bytes(swizzle);
    const uint32_t box[4] = {row / (uint32_t)element, 11, 2, 2};
    const int boxes[4] = {(int)box[0], 11, rank > 2 ? 2 : 1, rank > 3 ? 2 : 1};
    const uint32_t bytes = row * 11 * (uint32_t)boxes[2] * (uint32_t)boxes[3];
    std::vector<uint8_t> tensor(160 * 24 * 4 * 2 + 16), image(bytes), out;
    uint8_t *base = tensor.data() + (16 - (uintptr_t)tensor.data() % 16) % 16;
    const size_t total = 160 * 24 * 4 * 2;
    std::mt19937 random(11);
    CUtensorMap map;
    cr_assert(hopper::make_tensor_map(&map, base, element, rank, map_sizes, strides, box,
                                      swizzle) == cudaSuccess);
    const int corners[][4] = {{0, 0, 0, 0},
                              {16 / element, 5, 1, 0},
                              {-16 / element, -3, -1, -1},
                              {sizes[0] - 4 / element, 17, 2, 1},
                              {8 / element, 30, 0, 0}};
    for (const auto &corner : corners) {
        for (size_t i = 0; i < total; i++)
            base[i] = (uint8_t)random();
        /* Where every byte of the box lies in shared memory and in the tensor (-1: outside). */
        std::vector<int64_t> source(bytes, -1);
        for (int x3 = 0; x3 < boxes[3]; x3++)
            for (int x2 = 0; x2 < boxes[2]; x2++)
                for (int x1 = 0; x1 < 11; x1++)
                    for (int byte = 0; byte < (int)row; byte++) {
                        const int r = (x3 * boxes[2] + x2) * 11 + x1;
                        const uint32_t at = swizzle == Swizzle::none
                                                ? row * (uint32_t)r + (uint32_t)byte
                                                : place_of(swizzle, r, byte / 16) + byte % 16;
                        const int c[4] = {corner[0] + byte / element, corner[1] + x1,
                                          corner[2] + x2, corner[3] + x3};
                        bool inside = true;
                        int64_t address = c[0] * element + byte % element;
                        for (int i = 0; i < rank; i++) {
                            inside = inside && c[i] >= 0 && c[i] < sizes[i];
                            address += i > 0 ? c[i] * (int64_t)strides[i] : 0;
                        }
                        source[at] = inside ? address : -1;
                    }
        const int4 c = {corner[0], corner[1], corner[2], corner[3]};
        cudaError_t error =
            hopper::launch(load, 1, 64, 1024 + bytes, nullptr, map, rank, c, bytes, image.data());
        cr_assert(error == cudaSuccess, "%s", report().text().c_str());
        for (uint32_t i = 0; i < bytes; i++)
            cr_assert_eq(image[i], source[i] < 0 ? 0 : base[source[i]], "byte %u", i);

        std::vector<uint8_t> expected(base, base + total);
        for (uint32_t i = 0; i < bytes; i++) {
            image[i] = (uint8_t)random();
            if (source[i] >= 0) expected[(size_t)source[i]] = image[i];
        }
        error = hopper::launch(store, 1, 64, 1024 + bytes, nullptr, map, rank, c, bytes,
                               (const uint8_t *)image.data());
        cr_assert(error == cudaSuccess, "%s", report().text().c_str());
        cr_assert(std::memcmp(base, expected.data(), total) == 0);
    }
}

} // namespace

Test(hopper_layouts, tma_boxes)
{
    for (auto schedule : {hopper_emulator::Schedule::earliest, hopper_emulator::Schedule::latest})
        for (Swizzle swizzle : {Swizzle::b128, Swizzle::b64, Swizzle::b32, Swizzle::none})
            for (int rank : {2, 3, 4})
                for (int element : {1, 4}) {
                    hopper_emulator::options().schedule = schedule;
                    check_boxes(element, swizzle, rank);
                }
}

Test(hopper_layouts, tensor_map_arguments)
{
    alignas(16) static uint8_t base[4096];
    const uint64_t sizes[2] = {64, 32};
    uint64_t strides[2] = {0, 64};
    uint32_t box[2] = {64, 32};
    CUtensorMap map;
    const auto make = [&](const void *at, Swizzle swizzle) {
        return hopper::make_tensor_map(&map, at, 1, 2, sizes, strides, box, swizzle);
    };
    cr_expect(make(base, Swizzle::b64) == cudaSuccess);
    cr_expect(make(base, Swizzle::b128) == cudaErrorInvalidValue);
    cr_expect(make(base + 8, Swizzle::b64) == cudaErrorInvalidValue);
    strides[1] = 72;
    cr_expect(make(base, Swizzle::b64) == cudaErrorInvalidValue);
    strides[1] = 64;
    box[1] = 257;
    cr_expect(make(base, Swizzle::b64) == cudaErrorInvalidValue);
    box[1] = 32;
    box[0] = 24;
    cr_expect(make(base, Swizzle::none) == cudaErrorInvalidValue);
}

namespace
{

/*
 * "ldmatrix", fragment layout: thread l holds of each 8x8 matrix row l / 4, elements 2 * (l % 4)
 * and the next; with .trans, those of the transposed matrix.
 */
__global__ void matrices(uint16_t (*element)[8][8], uint16_t (*out)[8][8], bool trans, bool store)
{
    using namespace hopper;
    const uint32_t base = shared_base();
    const int l = threadIdx.x;
    const uint32_t row = base + 128 * (l % 8) + 16 * (l / 8); /* matrices side by side */
    const auto at = [&](uint16_t(*m)[8][8], int matrix, int i) -> uint16_t & {
        const int r = l / 4, c = l % 4 * 2 + i;
        return trans ? m[matrix][c][r] : m[matrix][r][c];
    };
    uint32_t v[4];
    if (store) {
        for (int m = 0; m < 4; m++)
            v[m] = (uint32_t)at(element, m, 0) | (uint32_t)at(element, m, 1) << 16;
        const uint4 r = {v[0], v[1], v[2], v[3]};
        trans ? stmatrix_x4_trans(row, r) : stmatrix_x4(row, r);
        __syncwarp();
        for (int i = 0; i < 8; i++)
            out[l / 8][l % 8][i] = load_shared<uint16_t>(row + 2 * i);
    } else {
        for (int i = 0; i < 8; i++)
            store_shared<uint16_t>(row + 2 * i, element[l / 8][l % 8][i]);
        __syncwarp();
        const uint4 r = trans ? ldmatrix_x4_trans(row) : ldmatrix_x4(row);
        std::memcpy(v, &r, sizeof v);
        for (int m = 0; m < 4; m++) {
            at(out, m, 0) = (uint16_t)v[m];
            at(out, m, 1) = (uint16_t)(v[m] >> 16);
        }
    }
}

} // namespace

/* 9.7.14.5.8, m16n8k16 with A and B of .f16: row and column of each element of lane l. */
__global__ void halves_product(const uint16_t (*a)[16], const uint16_t (*b)[8], float (*d)[8])
{
    const int l = (int)threadIdx.x, group = l >> 2, in_group = l % 4;
    uint32_t a_words[4] = {}, b_words[2] = {};
    float d_values[4];
    for (int i = 0; i < 8; i++) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a_words[i / 2] |= (uint32_t)a[row][column] << 16 * (i % 2);
    }
    for (int i = 0; i < 4; i++) {
        const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b_words[i / 2] |= (uint32_t)b[row][group] << 16 * (i % 2);
    }
    for (int i = 0; i < 4; i++)
        d_values[i] = d[group + (i < 2 ? 0 : 8)][in_group * 2 + (i & 1)];
    hopper::mma_f16(d_values, a_words, b_words);
    for (int i = 0; i < 4; i++)
        d[group + (i < 2 ? 0 : 8)][in_group * 2 + (i & 1)] = d_values[i];
}

Test(hopper_layouts, mma_of_halves)
{
    uint16_t a[16][16], b[16][8];
    float d[16][8], expected[16][8];
    std::mt19937 random(7);
    auto half = [&](int value) { return (uint16_t)(hopper::cvt_f16x2(0, (float)value) & 0xFFFF); };
    int a_values[16][16], b_values[16][8];
    for (int k = 0; k < 16; k++)
        for (int i = 0; i < 16; i++) {
            a[i][k] = half(a_values[i][k] = (int)(random() % 2049) - 1024);
            if (i < 8) b[k][i] = half(b_values[k][i] = (int)(random() % 129) - 64);
        }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            expected[i][j] = d[i][j] = (float)(i - 8 * j);
            for (int k = 0; k < 16; k++)
                expected[i][j] += (float)(a_values[i][k] * b_values[k][j]);
        }
    hopper::launch(halves_product, dim3(1), dim3(32), 0, nullptr, a, b, d);
    cr_assert(report().findings.empty(), "%s", report().text().c_str());
    cr_assert_eq(std::memcmp(d, expected, sizeof d), 0);
}

/* A sum is cut, not rounded: 2^24 + 1.5, next to 2^24 + 2, becomes 2^24. */
Test(hopper_layouts, mma_cuts_its_sum)
{
    uint16_t a[16][16] = {}, b[16][8] = {};
    float d[16][8] = {};
    a[0][0] = 0x3C00, b[0][0] = 0x3E00, d[0][0] = 0x1p24f; /* 1 * 1.5 */
    a[1][0] = 0xBC00, d[1][0] = -0x1p24f;
    hopper::launch(halves_product, dim3(1), dim3(32), 0, nullptr, a, b, d);
    cr_assert_eq(d[0][0], 0x1p24f);
    cr_assert_eq(d[1][0], -0x1p24f);
}

Test(hopper_layouts, ldmatrix_and_stmatrix)
{
    static uint16_t element[4][8][8], out[4][8][8];
    for (int i = 0; i < 256; i++)
        element[i / 64][i / 8 % 8][i % 8] = (uint16_t)(i * 257);
    for (bool trans : {false, true})
        for (bool store : {false, true}) {
            std::memset(out, 0, sizeof out);
            cudaError_t error =
                hopper::launch(matrices, 1, 32, 1024, nullptr, element, out, trans, store);
            cr_assert(error == cudaSuccess, "%s", report().text().c_str());
            cr_expect(std::memcmp(element, out, sizeof out) == 0, "trans %d store %d", trans,
                      store);
        }
}
