/*
 * The producer of the Hopper attention kernels: one thread that keeps the rings of K and V full by
 * TMA. K and V have separate barriers, so that Q K^T starts before V is there. The scales of a tile
 * travel with its K.
 */
#ifndef HEADROOM_ATTENTION_LOAD_SM90_CUH
#define HEADROOM_ATTENTION_LOAD_SM90_CUH

#include "attention_work_sm90.cuh"

namespace attention_sm90
{

/* A place in a ring of STAGES: the stage, and the parity of its full barrier's phase. */
template <int STAGES> struct Slot {
    uint32_t count = 0; /* of tiles before it */
    HR_DEVICE uint32_t stage() const { return count % STAGES; }
    HR_DEVICE uint32_t parity() const { return count / STAGES & 1; }
};

/* Maps of q and k: [head][token][channel]; of v: [head][tile][channel][token of the tile]. */
template <class T>
HR_DEVICE void produce(const CUtensorMap &q_map, const CUtensorMap &k_map, const CUtensorMap &v_map,
                       const hr_sm90_args &args, Order order, uint32_t base)
{
    using namespace hopper;
    Slot<T::STAGES> slot;
    uint32_t q_parity = 0;
    Work work;
    for (int index = blockIdx.x; index < order.items; index = next_item(order, index)) {
        if (!find_work<T::KV>(args, order, index, work)) continue;
        if (work.tile_begin >= work.tile_end) continue;

        mbarrier_wait(base + T::Q_EMPTY, q_parity ^ 1); /* at first everything is free */
        q_parity ^= 1;
        mbarrier_arrive_expect_tx(base + T::Q_FULL, CONSUMERS * T::Q.bytes());
        for (int consumer = 0; consumer < CONSUMERS; consumer++)
            for (int chunk = 0; chunk < T::Q.chunks(); chunk++)
                tma_load_3d(base + T::Q_AT + consumer * T::Q.bytes() + chunk * 64 * T::Q.width(),
                            &q_map, base + T::Q_FULL, chunk * T::Q.width() / T::ELEMENT,
                            work.first_q + work.row + consumer * 64, work.head);

        const int first_tile = args.kv_tile_offset[work.sequence];
        for (int tile = work.tile_end - 1; tile >= work.tile_begin; tile--) {
            const int v_tile = first_tile + tile * T::KV / HR_SM90_TILE_KV;
            const uint32_t k_full = base + T::K_FULL + 8 * slot.stage();
            mbarrier_wait(base + T::K_EMPTY + 8 * slot.stage(), slot.parity() ^ 1);
            const bool scales = T::TOKEN_SCALES || (T::SCALE_BYTES > 0 && args.tile_scale);
            mbarrier_arrive_expect_tx(k_full, T::K.bytes() + (scales ? T::SCALE_BYTES : 0));
            for (int chunk = 0; chunk < T::K.chunks(); chunk++)
                tma_load_3d(base + T::K_AT + slot.stage() * T::K.bytes() +
                                chunk * T::KV * T::K.width(),
                            &k_map, k_full, chunk * T::K.width() / T::ELEMENT,
                            work.first_kv + tile * T::KV, work.kv_head);
            if (scales)
                bulk_load(base + T::SCALES_AT + slot.stage() * T::SCALE_BYTES,
                          (const char *)args.tile_scale +
                              ((int64_t)work.kv_head * args.kv_tiles + v_tile) * T::SCALE_BYTES,
                          T::SCALE_BYTES, k_full);

            const uint32_t v_full = base + T::V_FULL + 8 * slot.stage();
            mbarrier_wait(base + T::V_EMPTY + 8 * slot.stage(), slot.parity() ^ 1);
            mbarrier_arrive_expect_tx(v_full, T::V.bytes());
            for (int chunk = 0; chunk < T::V.chunks(); chunk++)
                tma_load_4d(base + T::V_AT + slot.stage() * T::V.bytes() +
                                chunk * T::V.rows * T::V.width(),
                            &v_map, v_full,
                            tile * T::KV % HR_SM90_TILE_KV + chunk * T::V.width() / T::ELEMENT, 0,
                            v_tile, work.kv_head);
            slot.count++;
        }
    }
}

} // namespace attention_sm90

#endif
