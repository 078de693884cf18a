/* sim_hopper.hpp — the instructions of flash_attention/hopper.h for the simulator: the same names, in plain C++.
 * A matrix product is done when it is started, a copy when it is asked for: right kernels don't notice. What waits for
 * bytes or arrivals waits here too, and a wait that can't end is reported. */
#ifndef SIM_HOPPER_HPP
#define SIM_HOPPER_HPP
#include "cuda_runtime.h"

#define __grid_constant__

struct CUtensorMap { const char *at; int64_t dims, heads, rows, batch, head, row, sequence; int box; };

static inline unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
static inline uint64_t matrix_at(unsigned address, unsigned stride) {
    return address / 16 | (uint64_t)(stride / 16) << 32;
}

/* n: registers of the sum; left: a matrix in shared memory, or NULL and 4 registers a lane. */
void sim_wgmma(float *d, int n, bool bf16, uint64_t left, const unsigned *registers, uint64_t right, bool more);

template <int BF16, int N> void wgmma_rows(float (&d)[N], uint64_t left, uint64_t right, int more) {
    sim_wgmma(d, N, BF16, left, nullptr, right, more);
}
template <int BF16, int N> void wgmma_columns(float (&d)[N], const unsigned *left, uint64_t right) {
    sim_wgmma(d, N, BF16, 0, left, right, true);
}
static inline void wgmma_begin() {}
static inline void wgmma_end() {}
template <int LEFT> void wgmma_wait() {}
template <class T, int N> void keep(T (&)[N]) {}
static inline void publish_stores() {}

void barrier_init(unsigned barrier, unsigned arrivals);
static inline void barrier_init_done() {}
void barrier_arrive(unsigned barrier);
void barrier_expect(unsigned barrier, unsigned bytes);
void barrier_wait(unsigned barrier, unsigned parity);
void copy_box(unsigned to, const CUtensorMap *map, unsigned barrier, int column, int head, int row, int batch);

template <int N> void registers_give() {}
template <int N> void registers_take() {}

template <class STRIDE>
int describe(CUtensorMap *map, const void *at, int, int64_t batch, int64_t rows, int64_t heads, int64_t dims,
             STRIDE stride, int box) {
    *map = { (const char *)at, dims, heads, rows, batch, stride.head, stride.seq, stride.batch, box };
    return 0;
}
#endif
