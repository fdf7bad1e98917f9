/*
 * A kernel that ptxas makes slow and only informs of: it uses an accumulator while wgmma is at work
 * on it. cmake/nvcc_guard.sh must refuse it.
 */
#include "hopper.cuh"

__global__ void __launch_bounds__(128, 1) serialized(float *out, uint64_t a, uint64_t b, int steps)
{
    hopper::Registers<float, 64> d;
    for (int i = 0; i < 64; i++)
        d[i] = out[i];
    for (int step = 0; step < steps; step++) {
        hopper::wgmma_fence(d);
        hopper::wgmma_e4m3(d, a, b, true);
        d[3] += 1;
        hopper::wgmma_commit();
    }
    hopper::wgmma_wait<0>(d);
    for (int i = 0; i < 64; i++)
        out[i + 64 * threadIdx.x] = d[i];
}
