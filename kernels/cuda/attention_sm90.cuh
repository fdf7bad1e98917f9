/*
 * Fused attention on Hopper: the consumers' main loops, the kernel, and its launch. The recipe's
 * instructions are in attention_operands_sm90.cuh, its softmax in attention_softmax_sm90.cuh, tile
 * sizes and the register budget in attention_tile_sm90.cuh.
 *
 *     producer     K(n)  V(n)  K(n-1)  V(n-1) ...                        TMA, two rings
 *     consumer 0   S(n-1) = Q K^T | R = P(n) V | softmax(n-1) | O += R   while consumer 1 is at
 *     consumer 1   softmax(n) ...                                        its softmax
 *
 * Tiles of keys are taken in descending order, so that a causal mask cuts the first ones only. Two
 * named barriers make the consumers take turns at issuing matrix products.
 */
#ifndef HEADROOM_ATTENTION_SM90_CUH
#define HEADROOM_ATTENTION_SM90_CUH

#include "attention_load_sm90.cuh"
#include "attention_softmax_sm90.cuh"

namespace attention_sm90
{

/*
 * Descriptor of an operand's rows from `row` on, k starting at byte `k` of them: the tile's own
 * plus a constant, so that all of a tile's are one register apart from an immediate.
 */
HR_DEVICE uint64_t operand(uint32_t tile, Area area, int row, int k)
{
    const int offset =
        k / area.width() * area.rows * area.width() + row * area.width() + k % area.width();
    return hopper::matrix_descriptor(tile, area.swizzle()) + (uint64_t)(offset / 16);
}

/*
 * A consumer thread. S, P, R and O leave about 30 registers, so what the main loop needs once a
 * tile is parked in shared memory, and the rest is found again from the item's index.
 */
template <Recipe RECIPE, int D, bool SOFTCAP> struct Consumer {
    using T = Tile<RECIPE, D, SOFTCAP>;
    using Op = Operands<RECIPE>;
    using Scores = Registers<typename Op::Score, T::KV / 2>;
    using Slot = attention_sm90::Slot<T::STAGES>;
    static constexpr int STEPS = T::KV / Op::STEP;
    static constexpr bool OWN_MAXIMUM = RECIPE == Recipe::int8;
    static constexpr bool V_SCALED = RECIPE == Recipe::fp8 || RECIPE == Recipe::int8_fp8;
    static constexpr uint32_t TURN = 1; /* named barriers: TURN + consumer lets it issue */
    static_assert(Op::STEP * T::ELEMENT == 32, "an instruction takes 32 bytes of k");

    /* 16 bytes each, of this thread alone. */
    enum Parked {
        LIMITS,               /* int4: lo and hi of both rows, see `start` */
        FACTORS,              /* float4: scale and bias of both rows, with softcap */
        BOUNDS,               /* int4: see `start` */
        TILE,                 /* int8, float4: the last tile's maxima and sums */
        V_UNIT = TILE,        /* E4M3 V, float: its scale by block in the item's last tile, or 1 */
        STATISTICS = TILE + 1 /* int8, float4: m and l of both rows */
    };

    const hr_sm90_args &args;
    const int consumer;
    Slot slot; /* of the tile at work; counts tiles, so that it also says which that is */
    Rows rows;

    HR_DEVICE Consumer(const hr_sm90_args &arguments, int number)
        : args(arguments), consumer(number)
    {
    }

    static HR_DEVICE uint32_t base() { return hopper::shared_base(); }
    static HR_DEVICE int quad_lane() { return threadIdx.x % 4; }
    /* This thread's first row in the item. */
    static HR_DEVICE int row() { return threadIdx.x / 32 * 16 - 64 + threadIdx.x % 32 / 4; }
    static HR_DEVICE uint32_t parked(Parked what)
    {
        return base() + T::PARKED_AT + what * T::PARKED_BYTES + 16 * (threadIdx.x - 128);
    }

    /* This warp is done with what the empty barrier guards. */
    static HR_DEVICE void release(uint32_t empty)
    {
        __syncwarp();
        if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(empty);
    }

    HR_DEVICE void take_turn() { hopper::named_barrier_sync(TURN + consumer, 128 * CONSUMERS); }
    HR_DEVICE void give_turn()
    {
        hopper::named_barrier_arrive(TURN + (consumer + 1) % CONSUMERS, 128 * CONSUMERS);
    }

    /* Issues S = Q K^T, once K is there. */
    HR_DEVICE void issue_scores(Scores &s)
    {
        const uint32_t q_at = base() + T::Q_AT + consumer * T::Q.bytes();
        const uint32_t k_at = base() + T::K_AT + slot.stage() * T::K.bytes();
        hopper::mbarrier_wait(base() + T::K_FULL + 8 * slot.stage(), slot.parity());
        if constexpr (Op::PRELOAD_SCORES) preload_magic(s);
        hopper::wgmma_fence(s);
#pragma unroll
        for (int k = 0; k < T::Q.row_bytes; k += 32)
            Op::qk(s, operand(q_at, T::Q, 0, k), operand(k_at, T::K, 0, k),
                   Op::PRELOAD_SCORES || k > 0);
        hopper::wgmma_commit();
    }

    /* Issues r (+)= P V for columns of O from `column` on. Without promotion r is O. */
    template <int N>
    static HR_DEVICE void issue_product(Registers<typename Op::Product, N> &r,
                                        Registers<uint32_t, 4> (&p)[STEPS], Slot v, int column)
    {
        const uint32_t v_at = base() + T::V_AT + v.stage() * T::V.bytes();
        hopper::mbarrier_wait(base() + T::V_FULL + 8 * v.stage(), v.parity());
        if constexpr (T::MAGIC_PRODUCT) preload_magic(r);
        hopper::wgmma_fence(r, p);
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            Op::pv(r, p[step], operand(v_at, T::V, column, 32 * step),
                   !Op::PROMOTE || T::MAGIC_PRODUCT || step > 0);
        hopper::wgmma_commit();
    }

    /* K's scale of the tile, and how V's changes with it; where scales are not by block, 1. */
    HR_DEVICE float2 block_scales(uint32_t scales) const
    {
        if constexpr (RECIPE == Recipe::int8_fp8)
            return make_float2(1, hopper::load_shared<float>(scales + 4 * HR_SM90_V_STEP));
        if constexpr (RECIPE == Recipe::fp8)
            if (args.tile_scale) return hopper::load_shared<float2>(scales);
        return make_float2(1, 1);
    }

    /* Does some row's mask cut the tile? To be asked before S is waited for, as it takes a while.
     */
    HR_DEVICE bool is_cut() const
    {
        const int4 limit = bounds();
        return (int)(slot.count - limit.y) > 0 || (int)(slot.count - limit.z) <= 0;
    }

    /* Masks S and makes it P, not yet packed. The tile's K is free then. */
    HR_DEVICE float4 make_weights(Scores &s, bool cut)
    {
        const uint32_t scales = base() + T::SCALES_AT + slot.stage() * T::SCALE_BYTES;
        const float cap = args.softcap * LOG2_E;
        float4 own = {};
        if constexpr (SOFTCAP) {
            const float4 factors = hopper::load_shared<float4>(parked(FACTORS));
            rows.scale[0] = factors.x, rows.scale[1] = factors.y;
            rows.bias[0] = factors.z, rows.bias[1] = factors.w;
        }
        if (cut)
            mask_scores(s, hopper::load_shared<int4>(parked(LIMITS)),
                        2 * quad_lane() - (int)(slot.count * T::KV));
        if constexpr (OWN_MAXIMUM)
            own = softmax_tile<SOFTCAP, T::OVERLAP>(s, scales, cap, rows);
        else
            softmax_running<SOFTCAP, T::TOKEN_SCALES>(s, scales + 16 * quad_lane(), cap,
                                                      RECIPE == Recipe::bf16 ? 0.0f : LOG2_448,
                                                      block_scales(scales), rows);
        /*
         * ptxas knows no reason to compute P before the wait for P V that follows, and would rather
         * wait first. It keeps an arrival before the wait, so the arrival is made to depend on the
         * sums, which are never negative.
         */
        const float sum = OWN_MAXIMUM ? own.z + own.w : rows.l[0] + rows.l[1];
        release(base() + T::K_EMPTY + 8 * slot.stage() + (sum < 0 ? 8 : 0));
        return own;
    }

    /* int8: the parked tile joins the parked statistics; says how its product joins O. */
    static HR_DEVICE void join(float (&alpha)[2], float (&beta)[2])
    {
        const float4 own = hopper::load_shared<float4>(parked(TILE));
        float4 all = hopper::load_shared<float4>(parked(STATISTICS));
        join_tile(own.x, own.z, all.x, all.z, alpha[0], beta[0]);
        join_tile(own.y, own.w, all.y, all.w, alpha[1], beta[1]);
        hopper::store_shared(parked(STATISTICS), all);
    }

    static HR_DEVICE int4 bounds()
    {
        return hopper::load_shared<int4>(parked(BOUNDS));
    }
    HR_DEVICE bool more_tiles() const
    {
        return slot.count != (uint32_t)bounds().x;
    }

    /* While softmax(n - 1) runs, so does R = P(n) V. BF16 accumulates in O itself. */
    HR_DEVICE void run_overlapped(Registers<float, D / 2> &o)
    {
        using namespace hopper;
        Scores s;
        Registers<typename Op::Product, Op::PROMOTE ? D / 2 : 2> r;
        Registers<uint32_t, 4> p[STEPS];
        issue_scores(s);
        const bool first_cut = is_cut();
        wgmma_wait<0>(s);
        const float4 first = make_weights(s, first_cut);
        if (OWN_MAXIMUM) store_shared(parked(TILE), first);
        Op::pack(s, p);
        while (more_tiles()) {
            const Slot v = slot;
            slot.count++;
            take_turn();
            issue_scores(s);
            if constexpr (Op::PROMOTE)
                issue_product(r, p, v, 0);
            else
                issue_product(o, p, v, 0);
            give_turn();
            const bool cut = is_cut();
            wgmma_wait<1>(s);
            float alpha[2] = {rows.alpha[0], rows.alpha[1]}, beta[2] = {};
            const float4 own = make_weights(s, cut);
            if constexpr (Op::PROMOTE)
                wgmma_wait<0>(r);
            else
                wgmma_wait<0>(o);
            release(base() + T::V_EMPTY + 8 * v.stage());
            Op::pack(s, p);
            if (OWN_MAXIMUM) {
                join(alpha, beta);
                store_shared(parked(TILE), own);
                scale_output(o, alpha);
            }
            if constexpr (Op::PROMOTE)
                add_product(o, r, 0, alpha, beta);
            else
                scale_output(o, rows.alpha);
        }
        release(base() + T::Q_EMPTY);
        if constexpr (Op::PROMOTE) {
            issue_product(r, p, slot, 0);
            float beta[2] = {};
            if (OWN_MAXIMUM) join(rows.alpha, beta);
            wgmma_wait<0>(r);
            if (OWN_MAXIMUM) scale_output(o, rows.alpha);
            add_product(o, r, 0, rows.alpha, beta);
        } else {
            issue_product(o, p, slot, 0);
            wgmma_wait<0>(o);
        }
        release(base() + T::V_EMPTY + 8 * slot.stage());
    }

    /* After most tiles alpha is exactly 1 in all rows of a warp, which skips the products. */
    static HR_DEVICE void scale_output(Registers<float, D / 2> &o, const float (&alpha)[2])
    {
        if (!__any_sync(0xFFFFFFFFu, alpha[0] != 1 || alpha[1] != 1)) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            o[i] *= alpha[half_of(i)];
    }

    /* O + R = P V by groups of columns. */
    HR_DEVICE void add_products(Registers<float, D / 2> &o, Registers<uint32_t, 4> (&p)[STEPS])
    {
        float beta[2] = {};
        if (OWN_MAXIMUM) join(rows.alpha, beta);
#pragma unroll
        for (int column = 0; column < D; column += T::COLUMNS) {
            Registers<typename Op::Product, T::COLUMNS / 2> r;
            issue_product(r, p, slot, column);
            hopper::wgmma_wait<0>(r);
            if constexpr (T::MAGIC_PRODUCT)
                add_magic_product(o, r, column, rows.alpha, beta);
            else
                add_product(o, r, column, rows.alpha, beta);
        }
        release(base() + T::V_EMPTY + 8 * slot.stage());
    }

    /* S of `tile` to P. */
    HR_DEVICE void weigh(Scores &s, Registers<uint32_t, 4> (&p)[STEPS])
    {
        const bool cut = is_cut();
        hopper::wgmma_wait<0>(s);
        const float4 own = make_weights(s, cut);
        if (OWN_MAXIMUM) hopper::store_shared(parked(TILE), own);
        Op::pack(s, p);
    }

    /* Where the registers do not hold S and R at once: only the other consumer overlaps. */
    HR_DEVICE void run_serial(Registers<float, D / 2> &o)
    {
        Registers<uint32_t, 4> p[STEPS];
        {
            Scores s;
            issue_scores(s);
            weigh(s, p);
        }
        while (more_tiles()) {
            take_turn();
            add_products(o, p);
            slot.count++;
            Scores s;
            issue_scores(s);
            give_turn();
            weigh(s, p);
        }
        release(base() + T::Q_EMPTY);
        add_products(o, p);
    }

    /* Columns of O that are finished together: their scales are all loaded before one is used. */
    static constexpr int FINISHED = 64;

    /* V's scales of this thread's channels from `column` on; 1 where they are by block. */
    HR_DEVICE void load_v_scales(const Work &work, int column, float (&scale)[FINISHED / 4])
    {
        const float *base = nullptr;
        if (V_SCALED && args.v_scale.block == 0)
            base = args.v_scale.base + work.kv_head * args.v_scale.head_stride;
#pragma unroll
        for (int i = 0; i < FINISHED / 4; i++) {
            const int channel = column + 8 * (i / 2) + 2 * quad_lane() + i % 2;
            scale[i] = 1;
            if (base != nullptr && channel < args.head_dim)
                scale[i] = base[channel * args.v_scale.stride];
        }
    }

    /* Row half h of these columns to a row of the output that starts at `at`. */
    template <bool BF16>
    HR_DEVICE void store_row(int64_t at, Registers<float, D / 2> &o,
                             const float (&scale)[FINISHED / 4], float factor, int column, int h)
    {
#pragma unroll
        for (int j = 0; j < FINISHED / 8; j++) {
            const int channel = column + 8 * j + 2 * quad_lane(), i = column / 2 + 4 * j + 2 * h;
            const float x = o[i] * factor * scale[2 * j];
            const float y = o[i + 1] * factor * scale[2 * j + 1];
            if (channel >= args.head_dim) continue;
            if (BF16)
                *(uint32_t *)((uint16_t *)args.o + at + channel) = hopper::cvt_bf16x2(y, x);
            else
                *(float2 *)((float *)args.o + at + channel) = make_float2(x, y);
        }
    }

    /* O and LSE of this thread's rows, from registers: a quad writes 32 bytes (16 of BF16). */
    HR_DEVICE void store(const Work &work, Registers<float, D / 2> &o)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float factor;
            const float lse = finish_row<RECIPE, SOFTCAP>(args, work, row(), rows, h, &factor);
            const int i = work.row + row() + 8 * h;
            if (i >= work.seqlen_q) continue;
            const int64_t token = work.first_q + i;
            if (args.lse != nullptr && quad_lane() == 0)
                args.lse[token * args.lse_token_stride + work.head * args.lse_head_stride] = lse;
            const int64_t at = token * args.o_token_stride + work.head * args.o_head_stride;
            if constexpr (V_SCALED) factor *= hopper::load_shared<float>(parked(V_UNIT));
#pragma unroll
            for (int column = 0; column < D; column += FINISHED) {
                float scale[FINISHED / 4];
                load_v_scales(work, column, scale);
                if (args.o_is_bf16)
                    store_row<true>(at, o, scale, factor, column, h);
                else
                    store_row<false>(at, o, scale, factor, column, h);
            }
        }
    }

    /* Parks what the main loop needs of an item. False: it has no keys. */
    HR_DEVICE bool start(const Work &work, int index, uint32_t q_parity)
    {
        const bool any_keys = work.tile_begin < work.tile_end;
        const int resume = index << 1 | (int)(q_parity ^ (any_keys ? 1 : 0));
        /*
         * Tile t is at work when slot.count is `zero` - t, which may wrap around. BOUNDS has
         * tile_begin, full_begin and full_end as such counts, and where to go on after the item;
         * LIMITS has keys from key zero * KV on, likewise.
         */
        const uint32_t zero = slot.count + (uint32_t)work.tile_end - 1;
        const uint32_t begin = zero - (uint32_t)work.tile_begin;
        hopper::store_shared(parked(BOUNDS),
                             make_int4((int)begin, (int)(zero - (uint32_t)work.full_begin),
                                       (int)(zero - (uint32_t)work.full_end), resume));
        int limits[4];
        row_range(args, work, work.row + row(), &limits[0], &limits[1]);
        row_range(args, work, work.row + row() + 8, &limits[2], &limits[3]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            limits[i] = (int)((uint32_t)limits[i] - zero * T::KV);
        hopper::store_shared(parked(LIMITS), make_int4(limits[0], limits[1], limits[2], limits[3]));
        start_rows<SOFTCAP>(args, work, row(), rows);
        if (SOFTCAP)
            hopper::store_shared(parked(FACTORS), make_float4(rows.scale[0], rows.scale[1],
                                                              rows.bias[0], rows.bias[1]));
        if constexpr (V_SCALED) {
            float unit = 1;
            if (args.v_scale.block > 0 && any_keys)
                unit = args.v_scale.base[hr_sm90_scale_index(
                    &args.v_scale, work.kv_head, work.sequence, 0, work.tile_begin * T::KV)];
            hopper::store_shared(parked(V_UNIT), unit);
        }
        if (OWN_MAXIMUM)
            hopper::store_shared(parked(STATISTICS),
                                 make_float4(LOWEST, LOWEST, rows.l[0], rows.l[1]));
        return any_keys;
    }

    HR_DEVICE void run(Order order)
    {
        uint32_t q_parity = 0;
        if (consumer == CONSUMERS - 1) give_turn(); /* the first turn is consumer 0's */
        for (int index = blockIdx.x; index < order.items; index = next_item(order, index)) {
            Work work;
            if (!find_work<T::KV>(args, order, index, work)) continue;
            Registers<float, D / 2> o;
#pragma unroll
            for (int i = 0; i < D / 2; i++)
                o[i] = 0;
            if (start(work, index, q_parity)) {
                hopper::mbarrier_wait(base() + T::Q_FULL, q_parity);
                if constexpr (T::OVERLAP)
                    run_overlapped(o);
                else
                    run_serial(o);
                slot.count++;
            }
            const int resume = bounds().w; /* parked over the main loop */
            index = resume >> 1;
            q_parity = resume & 1;
            find_work<T::KV>(args, order, index, work); /* again, not kept */
            if (OWN_MAXIMUM) {
                const float4 all = hopper::load_shared<float4>(parked(STATISTICS));
                rows.m[0] = all.x, rows.m[1] = all.y, rows.l[0] = all.z, rows.l[1] = all.w;
            }
            store(work, o);
        }
    }
};

template <Recipe RECIPE, int D, bool SOFTCAP>
__global__ void __launch_bounds__(THREADS, 1)
    attention_kernel(const __grid_constant__ CUtensorMap q_map,
                     const __grid_constant__ CUtensorMap k_map,
                     const __grid_constant__ CUtensorMap v_map,
                     const __grid_constant__ hr_sm90_args args, const __grid_constant__ Order order)
{
    using namespace hopper;
    using T = Tile<RECIPE, D, SOFTCAP>;
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        mbarrier_init(base + T::Q_FULL, 1);
        mbarrier_init(base + T::Q_EMPTY, 4 * CONSUMERS);
        for (int stage = 0; stage < T::STAGES; stage++) {
            mbarrier_init(base + T::K_FULL + 8 * stage, 1);
            mbarrier_init(base + T::K_EMPTY + 8 * stage, 4 * CONSUMERS);
            mbarrier_init(base + T::V_FULL + 8 * stage, 1);
            mbarrier_init(base + T::V_EMPTY + 8 * stage, 4 * CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<T>(q_map, k_map, v_map, args, order, base);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        /* Equal in a warp, which lets the compiler keep it in a uniform register. */
        const int consumer = __shfl_sync(0xFFFFFFFFu, warpgroup, 0) - 1;
        Consumer<RECIPE, D, SOFTCAP>(args, consumer).run(order);
    }
}

/* Boxes of `area` over [heads][tokens][head_dim]. */
inline cudaError_t map_rows(CUtensorMap *map, const void *codes, const hr_sm90_args &args,
                            int64_t tokens, int heads, int64_t head_bytes, Area area, int element)
{
    const uint64_t sizes[3] = {(uint64_t)args.head_dim, (uint64_t)tokens, (uint64_t)heads};
    const uint64_t strides[3] = {0, (uint64_t)(args.head_dim * element), (uint64_t)head_bytes};
    const uint32_t box[3] = {(uint32_t)(area.width() / element), (uint32_t)area.rows, 1};
    return hopper::make_tensor_map(map, codes, element, 3, sizes, strides, box, area.swizzle());
}

/* Boxes of `area` over [heads][tiles][head_dim][tokens of a tile]. */
inline cudaError_t map_values(CUtensorMap *map, const hr_sm90_args &args, Area area, int element)
{
    const uint64_t sizes[4] = {HR_SM90_TILE_KV, (uint64_t)args.head_dim, (uint64_t)args.kv_tiles,
                               (uint64_t)args.num_kv_heads};
    const uint64_t row_bytes = (uint64_t)(HR_SM90_TILE_KV * element);
    const uint64_t strides[4] = {0, row_bytes, row_bytes * sizes[1], (uint64_t)args.v_head_bytes};
    const uint32_t box[4] = {(uint32_t)(area.width() / element), (uint32_t)area.rows, 1, 1};
    return hopper::make_tensor_map(map, args.v, element, 4, sizes, strides, box, area.swizzle());
}

template <Recipe RECIPE, int D, bool SOFTCAP> cudaError_t launch_tile(const hr_sm90_args &args)
{
    using T = Tile<RECIPE, D, SOFTCAP>;
    const Order order = order_work(args, T::ELEMENT);
    if (order.items == 0) return cudaSuccess;
    CUtensorMap q_map, k_map, v_map;
    cudaError_t error = map_rows(&q_map, args.q, args, args.total_q, args.num_heads,
                                 args.q_head_bytes, T::Q, T::ELEMENT);
    if (error != cudaSuccess) return error;
    k_map = v_map = q_map; /* without keys neither is read */
    if (args.total_kv > 0)
        error = map_rows(&k_map, args.k, args, args.total_kv, args.num_kv_heads, args.k_head_bytes,
                         T::K, T::ELEMENT);
    if (error == cudaSuccess && args.total_kv > 0)
        error = map_values(&v_map, args, T::V, T::ELEMENT);
    if (error != cudaSuccess) return error;
    const int blocks = order.items < args.multiprocessors ? order.items : args.multiprocessors;
    return hopper::launch(attention_kernel<RECIPE, D, SOFTCAP>, dim3(blocks), dim3(THREADS),
                          T::SHARED_BYTES, (cudaStream_t)args.stream, q_map, k_map, v_map, args,
                          order);
}

/* The smallest head_dim of 64, 128 and 256 that holds this one. */
template <Recipe RECIPE, bool SOFTCAP> cudaError_t launch_head_dim(const hr_sm90_args &args)
{
    if (args.head_dim <= 64) return launch_tile<RECIPE, 64, SOFTCAP>(args);
    if (args.head_dim <= 128) return launch_tile<RECIPE, 128, SOFTCAP>(args);
    return launch_tile<RECIPE, 256, SOFTCAP>(args);
}

template <Recipe RECIPE> int launch(const hr_sm90_args *args)
{
    return (int)(args->softcap > 0 ? launch_head_dim<RECIPE, true>(*args)
                                   : launch_head_dim<RECIPE, false>(*args));
}

} // namespace attention_sm90

#endif
