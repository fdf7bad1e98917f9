/*
 * The order in which blocks take work items: every item is taken once, and under a causal mask no
 * block gets much more than its share.
 */
#include "attention_work_sm90.cuh"

#include <criterion/criterion.h>

#include <algorithm>
#include <vector>

using namespace attention_sm90;

__global__ static void take_items(Order order, int *taker, int *times)
{
    if (threadIdx.x > 0) return;
    for (int index = (int)blockIdx.x; index < order.items; index = next_item(order, index)) {
        taker[index] = (int)blockIdx.x;
        times[index]++;
    }
}

/* The largest sum of causal tiles a block has, over the mean. */
static double imbalance(Order order, int blocks)
{
    const int items = order.items;
    std::vector<int> taker(items, -1), times(items, 0);
    const cudaError_t error = hopper::launch(take_items, dim3(blocks), dim3(32), 0, nullptr, order,
                                             taker.data(), times.data());
    cr_assert_eq(error, cudaSuccess);
    std::vector<double> tiles(blocks, 0);
    double sum = 0;
    for (int i = 0; i < items; i++) {
        cr_assert_eq(times[i], 1, "item %d of %d x %d, sections of %d, %d blocks: %d times", i,
                     order.blocks, order.units, order.section, blocks, times[i]);
        const int section = i / (order.section * order.blocks);
        const int units = std::min(order.section, order.units - section * order.section);
        const int longest_first = (i - section * order.section * order.blocks) / units;
        tiles[taker[i]] += order.blocks - longest_first;
        sum += order.blocks - longest_first;
    }
    return *std::max_element(tiles.begin(), tiles.end()) * blocks / sum;
}

Test(hopper_work, every_item_is_taken_once)
{
    for (int blocks : {1, 2, 5, 7, 132})
        for (int units = 1; units <= 24; units += 5)
            for (int section : {1, 3, 8, 40})
                for (int rows : {1, 2, 9, 30})
                    if (blocks <= rows * units)
                        imbalance({rows, units, section, rows * units}, blocks);
}

Test(hopper_work, causal_work_is_even)
{
    /* 16k, 8k and 4k tokens at head_dim 128, 16k at 64 and 256, as order_work cuts them. */
    const Order orders[] = {{128, 16, 8, 2048},
                            {64, 32, 16, 2048},
                            {32, 64, 16, 2048},
                            {128, 32, 16, 4096},
                            {128, 8, 4, 1024}};
    for (const Order &order : orders) {
        const double most = imbalance(order, 132);
        cr_expect(most <= 1.02, "%d x %d in sections of %d: %g", order.blocks, order.units,
                  order.section, most);
    }
}
