/* sim_tensor.cpp — the PTX instructions that the lessons write as asm: ldmatrix and mma.sync, a warp at a time.
 * The translator turns an asm statement into sim_ptx(text, outputs, inputs). Lanes meet, show each other their registers,
 * and each computes its own part by the fragment map of the PTX manual. */
#include "sim.hpp"

enum { WORDS = 8 };
static uint32_t shown[32][2][32][WORDS];     /* [warp][parity][lane][word] */

/* Every lane of the warp shows `count` words; afterwards all can be read. @return the warp's words [lane][WORDS] */
static const uint32_t (*show(const uint32_t *words, int count, const void *site))[WORDS] {
    sim_thread *t = sim_now.current;
    const uint32_t side = sim_now.warp_epoch[t->warp] & 1;
    memcpy(shown[t->warp][side][t->lane], words, (size_t)count * 4);
    sim_meet(site);
    return shown[t->warp][side];
}

/* ---- numbers of 16 bits ---- */

float __half2float(__half h) {
    const int exponent = h.bits >> 10 & 31, digits = h.bits & 1023;
    const float sign = h.bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return digits ? NAN : sign * INFINITY;
    return sign * ldexpf((float)(exponent ? digits | 1024 : digits), (exponent ? exponent : 1) - 25);
}

__half __float2half_rn(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return { (uint16_t)(sign | 0x7fff) };
    int exponent = 0;
    if (x != 0) (void)frexpf(x, &exponent);
    const int unit = exponent - 11 < -24 ? -24 : exponent - 11;        /* the last digit is worth 2^unit */
    const float digits = rintf(ldexpf(fabsf(x), -unit));               /* nearest, ties to even */
    if (std::isinf(x) || ldexpf(digits, unit) > 65504) return { (uint16_t)(sign | 0x7c00) };
    return { (uint16_t)(sign | ((int)digits < 1024 ? (int)digits : (unit + 24) * 1024 + (int)digits)) };
}

float __bfloat162float(__nv_bfloat16 h) {
    const uint32_t wide = (uint32_t)h.bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

__nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return { 0x7fff };
    return { (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) };
}

static float half_of(uint32_t word, int high, bool bf16) {
    const uint16_t bits = (uint16_t)(word >> (high ? 16 : 0));
    return bf16 ? __bfloat162float({ bits }) : __half2float({ bits });
}

/* ---- mma.sync.m16n8k16: d = a b + c. g = lane / 4, q = lane % 4 ---- */

static float a_at(const uint32_t (*warp)[WORDS], int row, int k, bool bf16) {
    const int word = row / 8 + k / 8 * 2, lane = row % 8 * 4 + k % 8 / 2;
    return half_of(warp[lane][word], k % 2, bf16);
}

static float b_at(const uint32_t (*warp)[WORDS], int k, int column, bool bf16) {
    return half_of(warp[column * 4 + k % 8 / 2][4 + k / 8], k % 2, bf16);
}

static void multiply(bool bf16, std::initializer_list<void *> out, std::initializer_list<uint64_t> in, const void *site) {
    uint32_t mine[6];
    for (int i = 0; i < 6; i++) mine[i] = (uint32_t)in.begin()[i];
    const uint32_t (*warp)[WORDS] = show(mine, 6, site);
    const int g = sim_now.current->lane / 4, q = sim_now.current->lane % 4;
    for (int i = 0; i < 4; i++) {
        double sum = 0;
        for (int k = 0; k < 16; k++)
            sum += (double)a_at(warp, g + 8 * (i / 2), k, bf16) * b_at(warp, k, 2 * q + i % 2, bf16);
        float *d = (float *)out.begin()[i];
        *d = (float)(*d + sum);
    }
}

/* ---- ldmatrix.x4: lane n names row n % 8 of block n / 8; a lane gets two numbers of row lane / 4 of each block ---- */

static void load_blocks(bool transposed, std::initializer_list<void *> out, uint64_t address, const void *site) {
    const char *row = (const char *)sim_shared_pointer((uint32_t)address);
    if ((uintptr_t)row % 16) sim_complain("misaligned", site, "ldmatrix reads a row that is not aligned to 16 bytes");
    sim_access(row, 16, false, site);
    const uint32_t at = (uint32_t)address;
    const uint32_t (*warp)[WORDS] = show(&at, 1, site);
    const int lane = sim_now.current->lane;
    for (int block = 0; block < 4; block++) {
        uint16_t two[2];
        for (int i = 0; i < 2; i++) {
            const int from = transposed ? lane % 4 * 2 + i : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + i;
            memcpy(&two[i], (const char *)sim_shared_pointer(warp[block * 8 + from][0]) + 2 * column, 2);
        }
        memcpy(out.begin()[block], two, 4);
    }
}

void sim_ptx(const char *text, std::initializer_list<void *> out, std::initializer_list<uint64_t> in) {
    const void *site = __builtin_return_address(0);
    if (!strncmp(text, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 51)) return multiply(true, out, in, site);
    if (!strncmp(text, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 49)) return multiply(false, out, in, site);
    if (!strncmp(text, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", 46))
        return load_blocks(true, out, *in.begin(), site);
    if (!strncmp(text, "ldmatrix.sync.aligned.m8n8.x4.shared.b16", 40)) return load_blocks(false, out, *in.begin(), site);
    sim_complain("asm", site, "the simulator does not know this instruction: %.60s", text);
}
