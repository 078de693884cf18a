/* sim_hopper.cpp — wgmma, mbarriers and the copy engine, for lessons that are written with flash_attention/hopper.h.
 * Idea: matrices are read where the hardware would read them, through the 128-byte swizzle, so a tile that lies wrongly
 * gives wrong numbers; and a wait gives the turn to other threads until somebody ends it. */
#include "sim_hopper.hpp"
#include "sim.hpp"
#include <functional>
#include <map>

/* ---- mbarriers ---- */

struct barrier_state { unsigned arrivals, missing, phase; int64_t bytes; };     /* phases that have ended */
static std::map<unsigned, barrier_state> barriers;
static uint64_t block_of_barriers, events;          /* events: arrivals and copies, to tell waiting from stuck */
/* Copies land as late as they may: when somebody waits for them. Who reads without waiting finds the old contents. */
static std::map<unsigned, std::vector<std::function<void()>>> flying;

static void forget_last_block() {
    const uint64_t block = (uint64_t)sim_now.launch << 32 | sim_now.number;
    if (block != block_of_barriers) barriers.clear(), flying.clear();
    block_of_barriers = block;
}

static bool land(unsigned barrier) {
    std::vector<std::function<void()>> copies;
    copies.swap(flying[barrier]);
    for (auto &copy : copies) copy();
    return !copies.empty();
}

static barrier_state &barrier_at(unsigned barrier, const void *site) {
    forget_last_block();
    if (!barriers.count(barrier)) sim_complain("mbarrier", site, "used before barrier_init");
    return barriers[barrier];
}

static void settle(barrier_state &b) {
    events++;
    if (b.missing || b.bytes) return;
    b.phase++;
    b.missing = b.arrivals;
}

void barrier_init(unsigned barrier, unsigned arrivals) {
    forget_last_block();
    if (barrier % 8) sim_complain("misaligned", __builtin_return_address(0), "an mbarrier is 8 bytes, aligned to 8");
    barriers[barrier] = { arrivals, arrivals, 0, 0 };
}

static void arrive(unsigned barrier, int64_t bytes, const void *site) {
    barrier_state &b = barrier_at(barrier, site);
    if (!b.missing) sim_complain("mbarrier", site, "more arrivals than barrier_init announced");
    else b.missing--;
    b.bytes += bytes;
    settle(b);
}

void barrier_arrive(unsigned barrier) { arrive(barrier, 0, __builtin_return_address(0)); }
void barrier_expect(unsigned barrier, unsigned bytes) { arrive(barrier, bytes, __builtin_return_address(0)); }

void barrier_wait(unsigned barrier, unsigned parity) {
    const void *site = __builtin_return_address(0);
    uint64_t seen = events;
    for (int tries = 0; (barrier_at(barrier, site).phase & 1) == (parity & 1); tries++) {
        if (land(barrier)) continue;
        if (seen != events) tries = 0;
        seen = events;
        if (tries > 100000) {
            sim_complain("deadlock", site, "thread %d of block %u waits for an mbarrier that nobody ends",
                         sim_now.current->index, sim_now.number);
            exit(1);
        }
        sim_yield();
    }
}

/* ---- the copy engine ---- */

static uint32_t swizzle(uint32_t address) { return address ^ (address >> 3 & 0x70); }

static void copy_now(unsigned to, const CUtensorMap *map, unsigned barrier, int column, int head, int row, int batch,
                     const void *site) {
    for (int r = 0; r < map->box; r++)
        for (int c = 0; c < 64; c += 8) {
            uint32_t words[4] = { 0, 0, 0, 0 };
            const int64_t columns = map->dims - column - c;
            if (row + r >= 0 && row + r < map->rows && head < map->heads && batch < map->batch && columns > 0) {
                const char *from =
                    map->at + 2 * (batch * map->sequence + (row + r) * map->row + head * map->head + column + c);
                const int bytes = columns < 8 ? (int)columns * 2 : 16;
                sim_copied(from, bytes, site);
                memcpy(words, from, bytes);
            }
            memcpy(sim_shared_pointer(swizzle(to + (uint32_t)(r * 128 + c * 2))), words, 16);
        }
    barrier_state &b = barrier_at(barrier, site);
    b.bytes -= map->box * 128;
    settle(b);
}

void copy_box(unsigned to, const CUtensorMap *map, unsigned barrier, int column, int head, int row, int batch) {
    const void *site = __builtin_return_address(0);
    const CUtensorMap box = *map;
    if (to % 1024) sim_complain("misaligned", site, "a swizzled box begins on a multiple of 1024 bytes");
    flying[barrier].push_back([=] { copy_now(to, &box, barrier, column, head, row, batch, site); });
}

/* ---- wgmma m64nNk16: the lanes compute their own sums ---- */

static float number(uint32_t address, bool bf16) {
    uint16_t bits;
    memcpy(&bits, sim_shared_pointer(swizzle(address)), 2);
    return bf16 ? __bfloat162float({ bits }) : __half2float({ bits });
}

/* For the race check: the right matrix, once a warp. (Of a wide V the first box.) */
static void read_rows(uint32_t at, int rows, int bytes, const void *site) {
    for (int row = 0; row < rows; row++)
        for (int x = 0; x < bytes; x += 16) sim_read_shared(sim_shared_pointer(swizzle(at + (uint32_t)(row * 128 + x))), 16, site);
}

void sim_wgmma(float *d, int n, bool bf16, uint64_t left, const unsigned *registers, uint64_t right, bool more) {
    const sim_thread *t = sim_now.current;
    const int g = t->lane / 4, q = t->lane % 4, first = t->warp % 4 * 16 + g;
    float a[2][16], b[16];
    if (registers)
        for (int word = 0; word < 4; word++)
            for (int from = 0; from < 4; from++) {       /* the quad's lanes have the row's other columns */
                const uint32_t two = __shfl_sync(~0u, registers[word], t->lane / 4 * 4 + from);
                for (int i = 0; i < 2; i++) {
                    const uint16_t bits = (uint16_t)(two >> 16 * i);
                    float &to = a[word % 2][word / 2 * 8 + 2 * from + i];
                    to = bf16 ? __bfloat162float({ bits }) : __half2float({ bits });
                }
            }
    else
        for (int half = 0; half < 2; half++)
            for (int k = 0; k < 16; k++)
                a[half][k] = number((uint32_t)left * 16 + (uint32_t)((first + 8 * half) * 128 + k * 2), bf16);
    if (!t->lane) read_rows((uint32_t)right * 16, registers ? 16 : n * 2, registers ? 128 : 32, __builtin_return_address(0));
    const uint32_t at = (uint32_t)right * 16, stride = (uint32_t)(right >> 32) * 16;
    for (int e = 0; e < n; e += 4)
        for (int i = 0; i < 2; i++) {
            const int column = e / 4 * 8 + 2 * q + i;
            for (int k = 0; k < 16; k++)
                b[k] = registers ? number(at + column / 64 * stride + (uint32_t)(k * 128 + column % 64 * 2), bf16)
                                 : number(at + (uint32_t)(column * 128 + k * 2), bf16);
            for (int half = 0; half < 2; half++) {
                double sum = 0;
                for (int k = 0; k < 16; k++) sum += (double)a[half][k] * b[k];
                float &to = d[e + 2 * half + i];
                to = more ? (float)(to + sum) : (float)sum;
            }
        }
    sim_meet(__builtin_return_address(0));
}
