/*
 * Which sequence of a batch a tile belongs to, for kernels whose blocks go tile by tile.
 */
#ifndef HEADROOM_SEQUENCE_SM90_CUH
#define HEADROOM_SEQUENCE_SM90_CUH

#include "hopper.cuh"

namespace hopper
{

/* The sequence that has tile `tile`; offsets rise, and equal ones are sequences without tiles. */
HR_DEVICE int sequence_of(const int32_t *tile_offset, int batch, int tile)
{
    int low = 0, high = batch - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (tile_offset[middle] <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

} // namespace hopper

#endif
