/* decode_schedule.cu — the schedule of decode_schedule.h, computed where the lengths are: one
 * block of threads. Two prefix sums (cost over sequences, slots over items); the rest is a closed
 * form per worker and per item. */
#include "decode_schedule.h"
#include "ptx_decode.h"

static constexpr int THREADS = 512, WARPS = THREADS / 32;
static constexpr int IN_SMEM = 2048;    /* sequences that are looked up in shared memory */

/* Sum of x over the threads before this one; *total over all. All threads call it. */
__device__ __forceinline__ int exclusive_sum(int x, int *total, int *warp_sums) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int sum = x;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();                        /* the sums of the call before have been read */
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const int of_warp = warp_sums[w];
        before += w < warp ? of_warp : 0;
        all += of_warp;
    }
    *total = all;
    return before + sum - x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_schedule(const __grid_constant__ attn_problem p, const __grid_constant__ attn_tensors t,
                const __grid_constant__ attn_decode_shape shape, void *schedule) {
    __shared__ int warp_sums[WARPS];
    int32_t *part_begin = (int32_t *)((char *)schedule + attn_decode_part_begin_at(&shape));
    const int items = shape.batch * shape.tiles;
    __shared__ int32_t smem[2 * IN_SMEM + 1];
    int32_t *blocks_of = shape.batch <= IN_SMEM ? smem : part_begin + items + 1,
            *start = blocks_of + shape.batch;

    let_next_kernel_start();
    wait_for_earlier_kernels();
    int total = 0;
    for (int first = 0; first < shape.batch; first += THREADS) {
        const int b = first + (int)threadIdx.x;
        int cost = 0;
        if (b < shape.batch) {
            const attn_sequence s = attn_sequence_at(&p, &t, b);
            const int32_t blocks = attn_decode_blocks(attn_decode_span(&p, &s), shape.block_keys);
            blocks_of[b] = blocks;
            cost = attn_decode_cost(&shape, blocks) * shape.tiles;
        }
        int sum;
        const int before = exclusive_sum(cost, &sum, warp_sums);
        if (b < shape.batch) start[b] = total + before;
        total += sum;
    }
    if (threadIdx.x == 0) start[shape.batch] = total;
    __syncthreads();
    int equal = 1;
    for (int b = (int)threadIdx.x; b < shape.batch; b += THREADS) equal &= blocks_of[b] == blocks_of[0];
    equal = __syncthreads_and(equal);

    attn_decode_line line = { start, blocks_of, 0, 0, total, 0 };
    line.payload =
        equal ? attn_decode_payload_of_equals(&shape, total, attn_decode_cost(&shape, blocks_of[0]))
              : attn_decode_payload(&shape, total);
    attn_decode_work *work = (attn_decode_work *)((attn_decode_header *)schedule + 1);
    const uint32_t hash = attn_decode_hash(&shape);
    for (int w = (int)threadIdx.x; w < shape.workers; w += THREADS) {
        attn_decode_work of_worker = attn_decode_work_of(&shape, &line, w);
        of_worker.reserved[0] = (int32_t)hash;
        work[w] = of_worker;
    }

    int parts = 0;
    for (int first = 0; first < items; first += THREADS) {
        const int item = first + (int)threadIdx.x;
        const int slots =
            item < items ? attn_decode_item_slots(&shape, &line, item / shape.tiles, item % shape.tiles) : 0;
        int sum;
        const int before = exclusive_sum(slots, &sum, warp_sums);
        if (item < items) part_begin[item] = parts + before;
        parts += sum;
    }
    if (threadIdx.x == 0) {
        attn_decode_header *header = (attn_decode_header *)schedule;
        part_begin[items] = parts;
        *header = attn_decode_header{ ATTN_DECODE_MAGIC, hash, items, shape.workers, parts, {} };
    }
}
