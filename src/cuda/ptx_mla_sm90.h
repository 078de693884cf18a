/* ptx_mla_sm90.h — PTX instructions of mla_decode_sm90.cu beyond those of ptx_sm90.h: clusters of two
 * blocks, copies that land in both, gathered copies, fragments to shared memory, chained launches.
 * Same conventions as there. */
#ifndef ATTN_PTX_MLA_SM90_H
#define ATTN_PTX_MLA_SM90_H
#include "ptx_sm90.h"

/* ---- clusters ---- */

ATTN_DEVICE uint32_t cluster_rank(void) {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/* All threads of all blocks; orders their earlier shared-memory accesses before the others' later ones. */
ATTN_DEVICE void cluster_sync(void) {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/* Arrive at the barrier that lies at the same address in block `rank` of the cluster. No
 * .release.cluster: that fences all of global memory, microseconds; what is handed over here are
 * operands that wgmma has read. */
ATTN_DEVICE void mbarrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" :: "r"(barrier), "r"(rank) : "memory");
}

/* Has the phase of that parity ended? Doesn't wait. */
ATTN_DEVICE int mbarrier_ended(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return (int)done;
}

/* ---- copies ---- */

/* tma_load with a policy chosen at run time. */
ATTN_DEVICE void tma_load_policy(uint32_t to, const CUtensorMap *map, uint32_t barrier, int c0, int c1,
                                 int c2, int c3, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                    "l"(policy) : "memory");
}
/* The same into every block whose bit is in `blocks`, at the same address, each block's own barrier told. */
ATTN_DEVICE void tma_load_multicast(uint32_t to, const CUtensorMap *map, uint32_t barrier, int c0, int c1,
                                    int c2, int c3, uint32_t blocks, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %8, %7;"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                    "l"(policy), "h"((uint16_t)blocks) : "memory");
}
/* A box that tma_load will fetch: bring it to L2. */
ATTN_DEVICE void tma_prefetch(const CUtensorMap *map, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];"
                 :: "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
/* 16 bytes of global memory, asynchronously; async_copies_wait: this thread's have landed. */
ATTN_DEVICE void async_copy16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}
ATTN_DEVICE void async_copies_wait(void) { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* Four 8 x 8 matrices of 16-bit values; matrix m's row r goes to the 16 bytes at lane 8 m + r's address,
 * x[m] holds row lane / 4, columns 2 * (lane % 4) + {0, 1}: half of a wgmma accumulator's order. */
ATTN_DEVICE void smem_store_matrices(uint32_t to, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(x0), "r"(x1), "r"(x2), "r"(x3) : "memory");
}

/* ---- chained launches ---- */

/* What earlier kernels of the stream wrote is there. */
ATTN_DEVICE void grid_wait(void) { asm volatile("griddepcontrol.wait;" ::: "memory"); }
/* The next kernel of the stream may be started; its grid_wait still waits for all of this one. */
ATTN_DEVICE void grid_release(void) { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif
