/*
 * The arithmetic of wgmma: D[64][N] (+)= A[64][K] B[N][K]^T, K 32 bytes, and the conversions.
 *
 * FP8 and BF16 products are exact in double; the sum of one instruction's products and the
 * accumulator is rounded to FP32 once (or cut to 13 bits, Options::fp22). Integers wrap. mma's sums
 * of products of halves are cut to FP32, towards zero.
 */
#include "block.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace hopper_emulator
{

void gather(uint64_t descriptor, int rows, uint8_t *to);

namespace
{

constexpr int ROWS = 64, ROW_BYTES = 32, MAX_COLUMNS = 256;

double e4m3_value(uint8_t code)
{
    const int exponent = code >> 3 & 15, fraction = code & 7;
    double value =
        exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    if ((code & 0x7F) == 0x7F) value = NAN;
    return code & 0x80 ? -value : value;
}

double bf16_value(const uint8_t *bytes)
{
    const uint32_t bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 24;
    return from_word<float>(bits);
}

/* Row and column of register i of a thread of the warpgroup. */
int accumulator_row(int t, int i)
{
    return 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
}
int accumulator_column(int t, int i)
{
    return 8 * (i / 4) + 2 * (t % 4) + i % 2;
}

/* A in registers: byte b of register r, in rows of 32 bytes. Elements of 16 bits are two bytes. */
void gather_fragments(const Wgmma &operation, uint8_t *a)
{
    for (int t = 0; t < 128; t++)
        for (int r = 0; r < 4 && operation.fragment[t] != nullptr; r++) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (r % 2);
            std::memcpy(a + row * ROW_BYTES + 16 * (r / 2) + 4 * (t % 4),
                        &operation.fragment[t]->values[r], 4);
        }
}

/* Elements as T, A by rows and B by columns of the product's inner loop: b[k][column]. */
template <class T> struct Operands {
    int k;
    T a[ROWS][ROW_BYTES];
    T b[ROW_BYTES][MAX_COLUMNS];
};

template <class T>
void decode(Operands<T> &o, MatrixType type, const uint8_t *a, const uint8_t *b, int columns)
{
    static double table[256];
    if (table[1] == 0)
        for (int i = 0; i < 256; i++)
            table[i] = e4m3_value((uint8_t)i);
    const int size = type == BF16 ? 2 : 1;
    o.k = ROW_BYTES / size;
    auto element = [&](const uint8_t *p, bool is_unsigned) -> T {
        switch (type) {
        case E4M3:
            return (T)table[*p];
        case BF16:
            return (T)bf16_value(p);
        default:
            return is_unsigned ? (T)*p : (T)(int8_t)*p;
        }
    };
    for (int k = 0; k < o.k; k++) {
        for (int row = 0; row < ROWS; row++)
            o.a[row][k] = element(a + row * ROW_BYTES + k * size, type == U8S8);
        for (int column = 0; column < columns; column++)
            o.b[k][column] = element(b + column * ROW_BYTES + k * size, false);
    }
}

/* One row of D += its products. */
void add_row(const Operands<int32_t> &o, int row, int columns, int32_t *d)
{
    for (int k = 0; k < o.k; k++) {
        const int32_t a = o.a[row][k];
        for (int column = 0; column < columns; column++)
            d[column] = (int32_t)((uint32_t)d[column] + (uint32_t)(a * o.b[k][column]));
    }
}

void add_row(const Operands<double> &o, int row, int columns, float *d)
{
    double sum[MAX_COLUMNS];
    std::copy(d, d + columns, sum);
    for (int k = 0; k < o.k; k++) {
        const double a = o.a[row][k];
        for (int column = 0; column < columns; column++)
            sum[column] += a * o.b[k][column];
    }
    for (int column = 0; column < columns; column++)
        d[column] = (float)sum[column];
}

/*
 * Cuts all terms below 13 bits under the largest one's leading bit; Options::fp22. A sum that is
 * not finite stays what it is.
 */
void add_row_fp22(const Operands<double> &o, int row, int columns, float *d)
{
    double largest[MAX_COLUMNS], inverse[MAX_COLUMNS], check[MAX_COLUMNS];
    int32_t sum[MAX_COLUMNS]; /* 33 terms below 2^14 */
    for (int column = 0; column < columns; column++)
        largest[column] = std::fabs(check[column] = d[column]);
    for (int k = 0; k < o.k; k++)
        for (int column = 0; column < columns; column++) {
            const double product = o.a[row][k] * o.b[k][column], size = std::fabs(product);
            check[column] += product;
            largest[column] = size > largest[column] ? size : largest[column];
        }
    for (int column = 0; column < columns; column++) {
        const bool known = std::isfinite(check[column]) && largest[column] > 0;
        inverse[column] = known ? std::ldexp(1.0, 13 - std::ilogb(largest[column])) : 0;
        sum[column] = known ? (int32_t)(d[column] * inverse[column]) : 0;
    }
    for (int k = 0; k < o.k; k++)
        for (int column = 0; column < columns; column++)
            if (inverse[column] > 0)
                sum[column] += (int32_t)(o.a[row][k] * o.b[k][column] * inverse[column]);
    for (int column = 0; column < columns; column++) {
        int32_t whole = sum[column];
        int shift = 0;
        for (; std::abs(whole) >= 16384; shift++) /* beyond 14 bits: loses some at the other end */
            whole /= 2;
        d[column] = inverse[column] > 0 ? (float)(whole * std::ldexp(1 / inverse[column], shift))
                                        : (float)check[column];
    }
}

/*
 * Collects the accumulators of 128 threads as a matrix, adds the product, hands them back.
 * Registers that went out of scope, a fault, are null.
 */
template <class T, class D>
void multiply_as(const Wgmma &operation, const uint8_t *a, const uint8_t *b)
{
    static Operands<T> operands;
    static D d[ROWS][MAX_COLUMNS];
    const int columns = operation.columns;
    decode(operands, operation.type, a, b, columns);
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < columns / 2 && operation.d[t] != nullptr; i++) {
            D &element = d[accumulator_row(t, i)][accumulator_column(t, i)];
            if (operation.accumulate)
                std::memcpy(&element, &operation.d[t]->shadow[i], 4);
            else
                element = 0;
        }
    for (int row = 0; row < ROWS; row++)
        if constexpr (std::is_same_v<D, float>)
            if (operation.type == E4M3 && options().fp22)
                add_row_fp22(operands, row, columns, d[row]);
            else
                add_row(operands, row, columns, d[row]);
        else
            add_row(operands, row, columns, d[row]);
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < columns / 2 && operation.d[t] != nullptr; i++)
            std::memcpy(&operation.d[t]->shadow[i],
                        &d[accumulator_row(t, i)][accumulator_column(t, i)], 4);
}

/* The 8 upper bits of a float's fraction and exponent, rounded to nearest even. */
uint32_t to_bf16(float x)
{
    const uint32_t bits = to_word(x);
    if (x != x) return 0x7FFF;
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

/* To a format of `fraction_bits` and the smallest normal exponent `smallest`; magnitude only. */
uint32_t round_magnitude(double x, int fraction_bits, int smallest)
{
    const int exponent = std::max(x > 0 ? std::ilogb(x) : smallest, smallest);
    const double unit = std::ldexp(1.0, exponent - fraction_bits);
    const auto steps = (uint32_t)std::nearbyint(x / unit); /* ties to even */
    return (uint32_t)(exponent - smallest) * (1u << fraction_bits) + steps;
}

double f16_value(uint32_t code)
{
    const int exponent = code >> 10 & 31, fraction = code & 1023;
    double value =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) value = fraction == 0 ? HUGE_VAL : NAN;
    return code & 0x8000 ? -value : value;
}

uint32_t to_f16(double x)
{
    const uint32_t sign = std::signbit(x) ? 0x8000u : 0;
    if (x != x) return 0x7FFF;
    const double magnitude = std::fabs(x);
    return sign | (magnitude >= 65520 ? 0x7C00u : round_magnitude(magnitude, 10, -14));
}

uint32_t to_e4m3(float x)
{
    const uint32_t sign = std::signbit(x) ? 0x80u : 0;
    if (x != x) return 0x7F;
    return sign | std::min(0x7Eu, round_magnitude(std::min(std::fabs((double)x), 448.0), 3, -6));
}

} // namespace

/* mma_f16 of a warp; a lane's values are its a, b and d. */
void multiply_halves(const Word (&value)[32][10], Word (&result)[32][4])
{
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 12; i++) { /* halves of the first six registers */
            const int g = lane / 4, k = 2 * (lane % 4) + i % 2, r = i / 2;
            const double x = f16_value(value[lane][r] >> 16 * (i % 2) & 0xFFFF);
            if (r < 4)
                a[g + 8 * (r % 2)][8 * (r / 2) + k] = x;
            else
                b[8 * (r - 4) + k][g] = x;
        }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            double sum = from_word<float>(value[lane][6 + i]);
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][column];
            float cut = (float)sum;
            if (std::fabs((double)cut) > std::fabs(sum)) cut = std::nextafter(cut, 0.0f);
            result[lane][i] = to_word(cut);
        }
}

void multiply(const Wgmma &operation)
{
    static uint8_t a[ROWS * ROW_BYTES], b[MAX_COLUMNS * ROW_BYTES];
    if (operation.a_in_registers)
        gather_fragments(operation, a);
    else
        gather(operation.a, ROWS, a);
    gather(operation.b, operation.columns, b);
    if (operation.type == E4M3 || operation.type == BF16)
        multiply_as<double, float>(operation, a, b);
    else
        multiply_as<int32_t, int32_t>(operation, a, b);
}

} // namespace hopper_emulator

namespace hopper
{

using namespace hopper_emulator;

float ex2(float x)
{
    const float y = std::exp2(x);
    return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

uint32_t cvt_e4m3x2(float high, float low)
{
    return to_e4m3(high) << 8 | to_e4m3(low);
}
uint32_t cvt_e4m3x4(float a, float b, float c, float d)
{
    return cvt_e4m3x2(d, c) << 16 | cvt_e4m3x2(b, a);
}
uint32_t cvt_bf16x2(float high, float low)
{
    return to_bf16(high) << 16 | to_bf16(low);
}
uint32_t cvt_f16x2(float high, float low)
{
    return to_f16(high) << 16 | to_f16(low);
}

uint32_t add_f16x2(uint32_t a, uint32_t b)
{
    return to_f16(f16_value(a >> 16) + f16_value(b >> 16)) << 16 |
           to_f16(f16_value(a & 0xFFFF) + f16_value(b & 0xFFFF));
}

uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector)
{
    const uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t pick = selector >> 4 * i & 15;
        uint32_t byte = (uint32_t)(bytes >> 8 * (pick & 7)) & 0xFF;
        if (pick & 8) byte = byte & 0x80 ? 0xFF : 0;
        result |= byte << 8 * i;
    }
    return result;
}

} // namespace hopper
