/*
 * The small launches of kernels/cuda/prepare_sm90.cu under the emulator: the scales of tiles
 * against the contract's own definition for one key, and O and LSE where there are no keys.
 */
#include <criterion/criterion.h>

#include <cmath>
#include <vector>

#include "prepare_sm90.cu"

static void expect_clean(int error)
{
    cr_assert_eq(error, 0, "%s", hopper_emulator::report().text().c_str());
}

Test(hopper_prepare, tile_scales_follow_tokens_and_end_with_sequences)
{
    const std::vector<int32_t> cu_seqlens = {0, 0, 130, 131, 131}, tile_offset = {0, 0, 2, 3, 3};
    const int heads = 2, tokens = 131, tiles = 3;
    std::vector<float> k(heads * tokens), v(heads * tokens);
    for (int i = 0; i < heads * tokens; i++) {
        k[i] = 0.01f + (float)i / 7;
        v[i] = 3.0f / (float)(i + 1);
    }
    const float nan = std::nanf("");
    std::vector<float> out(heads * tiles * HR_SM90_TILE_SCALES, nan), tile(HR_SM90_TILE_SCALES);
    hr_sm90_tile_scale_args args = {};
    args.k_scale = {k.data(), tokens, 1, 0, nullptr};
    args.v_scale = {v.data(), tokens, 1, 0, nullptr};
    args.cu_seqlens_kv = cu_seqlens.data();
    args.kv_tile_offset = tile_offset.data();
    args.batch = 4;
    args.num_kv_heads = heads;
    args.kv_tiles = tiles;
    args.tile_scale = out.data();
    for (bool by_token : {true, false}) {
        if (!by_token) { /* one for each head, and none */
            args.k_scale = {k.data(), 1, 0, 0, nullptr};
            args.v_scale = {nullptr, 0, 0, 0, nullptr};
        }
        expect_clean(hr_tile_scale_sm90(&args));
        for (int head = 0; head < heads; head++)
            for (int t = 0; t < tiles; t++) {
                const int first = t < 2 ? t * 128 : 130, end = t < 2 ? 130 : 131;
                /* v falls from token to token, so the first one's scale is the tile's largest. */
                const float v_unit = hr_sm90_v_unit(by_token ? v[head * tokens + first] : 1);
                for (int key = 0; key < 128; key++) {
                    const bool real = first + key < end;
                    const int at = by_token ? head * tokens + first + key : head;
                    hr_sm90_set_tile_scale(tile.data(), key, real ? k[at] : 1,
                                           !real      ? v_unit
                                           : by_token ? v[at]
                                                      : 1,
                                           v_unit);
                }
                hr_sm90_end_tile_scale(tile.data(), v_unit, 1);
                const float *has = &out[(head * tiles + t) * HR_SM90_TILE_SCALES];
                for (int i = 0; i < HR_SM90_TILE_SCALES; i++)
                    cr_assert_eq(has[i], tile[i], "head %d, tile %d, float %d", head, t, i);
            }
    }
}

Test(hopper_prepare, without_keys_o_is_zero_and_lse_the_sink)
{
    const int tokens = 3, heads = 2, head_dim = 32, o_stride = 40;
    const float sinks[heads] = {2.5f, -INFINITY};
    for (bool bf16 : {false, true}) {
        std::vector<float> o(tokens * heads * o_stride, 7.0f), lse(tokens * heads, 7.0f);
        hr_sm90_args args = {};
        args.total_q = tokens;
        args.num_heads = heads;
        args.head_dim = head_dim;
        args.sinks = bf16 ? nullptr : sinks;
        args.o = o.data();
        args.o_is_bf16 = bf16;
        args.o_token_stride = heads * o_stride;
        args.o_head_stride = o_stride;
        args.lse = lse.data();
        args.lse_token_stride = heads;
        args.lse_head_stride = 1;
        expect_clean(hr_no_keys_sm90(&args));
        for (int i = 0; i < tokens * heads; i++) {
            cr_assert_eq(lse[i], bf16 ? -INFINITY : sinks[i % heads]);
            for (int c = 0; c < o_stride; c++) {
                const uint16_t half = ((const uint16_t *)o.data())[i * o_stride + c];
                if (c < head_dim)
                    cr_assert(bf16 ? half == 0 : o[i * o_stride + c] == 0);
                else
                    cr_assert(bf16 || o[i * o_stride + c] == 7.0f);
            }
        }
    }
}
