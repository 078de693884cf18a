/* sim_memory.cpp — every load and store of device code arrives here and is counted and checked.
 * How: lessons are compiled with -fsanitize=thread, which puts a call before each memory access; the functions it calls
 * (__tsan_read4 ...) are ours instead of the sanitizer's. An address tells the space: a fibre's stack = registers and
 * local memory, a static object or the dynamic buffer = shared, a cudaMalloc range = global. */
#include "sim.hpp"
#include <algorithm>
#include <cstdarg>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <unordered_map>

/* The static data of the program or plug-in that this is linked into: what it writes, and its constants. */
struct image { uintptr_t data, data_end, constants, constants_end; };

static int add_segment(dl_phdr_info *info, size_t, void *out) {
    image found = { 0, 0, UINTPTR_MAX, 0 };
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &part = info->dlpi_phdr[i];
        const uintptr_t first = info->dlpi_addr + part.p_vaddr, end = first + part.p_memsz;
        if (part.p_type != PT_LOAD) continue;
        if (part.p_flags & PF_W) found.data = first, found.data_end = end;
        else found.constants = std::min(found.constants, first), found.constants_end = std::max(found.constants_end, end);
    }
    if ((uintptr_t)&sim_now - found.data >= found.data_end - found.data) return 0;
    *(image *)out = found;
    return 1;
}

static const image &here() {
    static image mine = {};
    if (!mine.data_end) dl_iterate_phdr(add_segment, &mine);
    return mine;
}

uint32_t sim_visits::next(const void *site) {
    for (size_t h = ((uintptr_t)site * 0x9e3779b97f4a7c15ull) >> 55;; h = (h + 1) & 511) {
        if (slots[h].site == site) return slots[h].count++;
        if (!slots[h].site) {
            slots[h].site = site;
            return slots[h].count++;
        }
    }
}

/* ---- complaints ---- */

static std::map<std::string, int> complaints;
static int errors;
int sim_errors() { return errors; }

std::string sim_place(const void *site) {
    static std::map<const void *, std::string> known;
    auto found = known.find(site);
    if (found != known.end()) return found->second;
    char command[1200], line[512] = "";
    Dl_info module = {};
    if (!dladdr(site, &module)) return "unknown line";
    const bool fixed = ((const ElfW(Ehdr) *)module.dli_fbase)->e_type == ET_EXEC;       /* else: loaded anywhere */
    const uintptr_t at = (uintptr_t)site - 1 - (fixed ? 0 : (uintptr_t)module.dli_fbase);
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", module.dli_fname, (size_t)at);
    FILE *pipe = popen(command, "r");
    if (pipe) {
        if (!fgets(line, sizeof line, pipe)) line[0] = 0;
        pclose(pipe);
    }
    std::string text = line;
    text = text.substr(0, text.find_first_of(" \n"));
    const size_t slash = text.rfind('/');
    if (slash != std::string::npos) text = text.substr(slash + 1);
    return known[site] = text.empty() || text[0] == '?' ? "unknown line" : text;
}

void sim_complain(const char *kind, const void *site, const char *format, ...) {
    errors++;
    if (complaints[kind]++ >= 3) return;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "sim: %s at %s: %s\n", kind, sim_place(site).c_str(), text);
}

/* ---- memory spaces ---- */

struct shadow {                      /* history of one 4-byte word */
    uint32_t launch, block;          /* of the last write */
    uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
    int16_t writer, reader;          /* thread; NOBODY, SEVERAL, or lanes of warp w: OF_WARP - w */
    bool initialised, atomic;
};
enum { NOBODY = -1, SEVERAL = -2, OF_WARP = -3 };
static const shadow untouched = { 0, 0, 0, 0, 0, 0, NOBODY, NOBODY, false, false };

struct allocation {
    char *base;
    size_t bytes;
    std::string name;
    std::vector<shadow> words;
    int64_t loaded, stored;
};
static std::map<const char *, allocation> device;     /* by base address */
static std::map<const char *, size_t> pinned, constants;
static allocation *last_hit;
static std::unordered_map<uintptr_t, shadow> shared_words;
static std::vector<char> dynamic;
static size_t dynamic_bytes;
enum { RED_ZONE = 256 };

static allocation *find_device(const void *p) {
    const char *c = (const char *)p;
    if (last_hit && c >= last_hit->base && c < last_hit->base + last_hit->bytes) return last_hit;
    auto next = device.upper_bound(c);
    if (next == device.begin()) return nullptr;
    allocation &a = std::prev(next)->second;
    if (c >= a.base + a.bytes + RED_ZONE) return nullptr;
    return last_hit = &a;
}

bool sim_is_device(const void *p, size_t bytes) {
    allocation *a = find_device(p);
    return a && (const char *)p + bytes <= a->base + a->bytes;
}

bool sim_is_pinned(const void *p) {
    auto next = pinned.upper_bound((const char *)p);
    if (next == pinned.begin()) return false;
    --next;
    return (const char *)p < next->first + next->second;
}

void sim_constant(const void *p, size_t bytes) { constants[(const char *)p] = bytes; }

static bool is_constant(const char *p) {
    auto next = constants.upper_bound(p);
    if (next == constants.begin()) return false;
    --next;
    return p < next->first + next->second;
}

cudaError_t sim_malloc(void **pointer, size_t bytes) {
    char *raw = (char *)aligned_alloc(256, (bytes + 3 * RED_ZONE) / 256 * 256 + 256);
    if (!raw) return cudaErrorMemoryAllocation;
    memset(raw, 0xff, bytes);         /* NaN: a lesson that forgets to fill it sees it */
    allocation &a = device[raw];
    a = { raw, bytes, "", std::vector<shadow>((bytes + 3) / 4, untouched), 0, 0 };
    *pointer = raw;
    last_hit = nullptr;
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
    if (!pointer) return cudaSuccess;
    if (!device.count((char *)pointer)) return cudaErrorInvalidValue;
    cudaDeviceSynchronize();
    last_hit = nullptr;
    device.erase((char *)pointer);
    free(pointer);
    return cudaSuccess;
}

cudaError_t sim_malloc_host(void **pointer, size_t bytes) {
    *pointer = calloc(bytes + 1, 1);
    pinned[(char *)*pointer] = bytes;
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *pointer) {
    pinned.erase((char *)pointer);
    free(pointer);
    return cudaSuccess;
}

void sim_mark_written(const void *p, size_t bytes) {
    allocation *a = find_device(p);
    if (!a) return;
    const size_t first = (size_t)((const char *)p - a->base) / 4, last = ((size_t)((const char *)p - a->base) + bytes + 3) / 4;
    for (size_t i = first; i < last && i < a->words.size(); i++) {
        a->words[i] = untouched;
        a->words[i].initialised = true;
    }
}

void sim_name(const void *p, const char *tensor) {
    allocation *a = find_device(p);
    if (a) a->name = tensor;
}

int64_t sim_tensor_bytes(const char *tensor, int stores) {
    int64_t sum = 0;
    for (auto &entry : device)
        if (entry.second.name == tensor) sum += stores ? entry.second.stored : entry.second.loaded;
    return sum;
}

void sim_forget_tensor_bytes() {
    for (auto &entry : device) entry.second.loaded = entry.second.stored = 0;
}

/* ---- dynamic shared memory ---- */

enum { DYNAMIC_AT = 1 << 24, STATIC_AT = 1 << 28 };
size_t __cvta_generic_to_shared(const void *p) {
    const char *base = (const char *)sim_dynamic_shared(), *c = (const char *)p;
    if (c >= base - RED_ZONE && c < base + dynamic_bytes + RED_ZONE) return (size_t)(c - base) + DYNAMIC_AT;
    return (size_t)((uintptr_t)p - here().data) + STATIC_AT;
}
void *sim_shared_pointer(uint32_t address) {
    if (address >= STATIC_AT) return (void *)(here().data + (address - STATIC_AT));
    return (char *)sim_dynamic_shared() + ((int64_t)address - DYNAMIC_AT);
}

void *sim_dynamic_shared() { return (void *)(((uintptr_t)dynamic.data() + 127) / 128 * 128); }

void sim_dynamic_begin(size_t bytes) {
    dynamic_bytes = bytes;
    if (dynamic.size() < bytes + 128 + RED_ZONE) dynamic.resize(bytes + 128 + RED_ZONE);
    memset(sim_dynamic_shared(), 0xff, bytes);
}

/* ---- warp requests ---- */

struct request {
    bool store, shared;
    uint8_t size;
    int lanes;
    uintptr_t address[32];
};
static std::unordered_map<uint64_t, request> requests;

/* Bytes by tensor: what several lanes want at once is asked for once. */
static void count_tensor(const request &r) {
    uintptr_t words[32];
    std::copy(r.address, r.address + r.lanes, words);
    std::sort(words, words + r.lanes);
    const int64_t bytes = r.size * (std::unique(words, words + r.lanes) - words);
    if (allocation *a = find_device((const void *)r.address[0])) (r.store ? a->stored : a->loaded) += bytes;
}

static void count_global(const request &r) {
    uintptr_t sectors[128];
    int n = 0;
    count_tensor(r);
    for (int i = 0; i < r.lanes; i++)
        for (uintptr_t s = r.address[i] / 32; s <= (r.address[i] + r.size - 1) / 32 && n < 128; s++) sectors[n++] = s;
    std::sort(sectors, sectors + n);
    n = (int)(std::unique(sectors, sectors + n) - sectors);
    sim_counters &c = *sim_now.count;
    (r.store ? c.store_requests : c.load_requests)++;
    (r.store ? c.store_sectors : c.load_sectors) += n;
    (r.store ? c.store_bytes : c.load_bytes) += r.lanes * r.size;
}

/* Lanes go through in groups of 128 bytes (32 lanes of 4 bytes, 16 of 8, 8 of 16); in a group, words of one bank wait
 * for each other unless they are the same word. */
static void count_shared(const request &r) {
    const int group = r.size <= 4 ? 32 : 128 / r.size;
    sim_now.count->shared_requests++;
    for (int first = 0; first < r.lanes; first += group) {
        std::vector<uintptr_t> banks[32];
        size_t ways = 1;
        for (int i = first; i < r.lanes && i < first + group; i++)
            for (uintptr_t w = r.address[i] / 4; w <= (r.address[i] + r.size - 1) / 4; w++) {
                auto &bank = banks[w % 32];
                if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
                ways = std::max(ways, bank.size());
            }
        sim_now.count->shared_wavefronts += (int64_t)ways;
        sim_now.count->shared_ideal++;
    }
}

void sim_memory_flush() {
    for (auto &entry : requests) entry.second.shared ? count_shared(entry.second) : count_global(entry.second);
    requests.clear();
}

static void join_request(uintptr_t address, int size, bool store, bool shared, const void *site) {
    sim_thread *t = sim_now.current;
    const uint64_t visit = t->visits.next(site);
    const uint64_t key = ((uintptr_t)site * 0x9e3779b97f4a7c15ull ^ visit * 0xbf58476d1ce4e5b9ull) * 64 + (uint64_t)t->warp;
    request &r = requests[key];
    r.store = store;
    r.shared = shared;
    r.size = (uint8_t)size;
    if (r.lanes < 32) r.address[r.lanes++] = address;
}

/* ---- races ---- */

/* Is an earlier access at (epoch, warp epoch) by thread `other` unordered with the current thread's? */
static bool unordered(int other, uint32_t epoch, uint32_t warp_epoch) {
    const sim_thread *t = sim_now.current;
    if (other == NOBODY || other == t->index || epoch != sim_now.epoch) return false;
    const int warp = other <= OF_WARP ? OF_WARP - other : other / 32;
    return other == SEVERAL || warp != t->warp || warp_epoch == sim_now.warp_epoch[t->warp];
}

static void race(const char *space, const char *what, int other, const void *site) {
    sim_now.count->races++;
    if (other < 0) sim_complain("race", site, "thread %d %s a %s word that other threads touched since the last barrier",
                                sim_now.current->index, what, space);
    else sim_complain("race", site, "thread %d %s a %s word that thread %d touched since the last barrier",
                      sim_now.current->index, what, space, other);
}

static void within_block(shadow &w, bool store, bool atomic, const char *space, const void *site) {
    sim_thread *t = sim_now.current;
    const bool both_atomic = atomic && w.atomic;
    if (!both_atomic && unordered(w.writer, w.write_epoch, w.write_warp_epoch))
        race(space, store ? "writes" : "reads", w.writer, site);
    else if (store && !both_atomic && unordered(w.reader, w.read_epoch, w.read_warp_epoch))
        race(space, "writes", w.reader, site);
    if (store) {
        w.writer = (int16_t)t->index;
        w.write_epoch = sim_now.epoch;
        w.write_warp_epoch = sim_now.warp_epoch[t->warp];
        w.initialised = true;
        w.atomic = atomic;
    } else {
        const bool several = w.reader != NOBODY && w.reader != t->index && w.read_epoch == sim_now.epoch;
        const bool my_warp = w.reader <= OF_WARP ? OF_WARP - w.reader == t->warp : w.reader >= 0 && w.reader / 32 == t->warp;
        const bool long_ago = w.read_warp_epoch != sim_now.warp_epoch[t->warp];      /* my warp has met since */
        w.reader = (int16_t)(!several || (my_warp && long_ago) ? t->index : my_warp ? OF_WARP - t->warp : SEVERAL);
        w.read_epoch = sim_now.epoch;
        w.read_warp_epoch = sim_now.warp_epoch[t->warp];
    }
}

/* Words of the same launch written by another block are safe only through atomics or a fence that was seen. */
static void between_blocks(shadow &w, bool store, bool atomic, const void *site) {
    const bool other = w.launch == sim_now.launch && w.block != sim_now.number;
    if (other) {
        if (store && !atomic && !w.atomic) {
            sim_now.count->duplicate_stores++;
            if (complaints["written by two blocks"] < 1)
                sim_complain("written by two blocks", site, "block %u stores a word that block %u has stored already",
                             sim_now.number, w.block);
        } else if (!store && !w.atomic && !sim_now.acquired) {
            sim_now.count->races++;
            sim_complain("race between blocks", site, "block %u reads what block %u wrote in the same launch",
                         sim_now.number, w.block);
        }
        w.writer = w.reader = NOBODY;
    } else if (w.launch != sim_now.launch) {
        w.writer = w.reader = NOBODY;
    }
    within_block(w, store, atomic, "global", site);
    if (store) {
        w.launch = sim_now.launch;
        w.block = sim_now.number;
    }
}

/* ---- one access ---- */

static void global_access(allocation *a, uintptr_t address, int size, bool store, bool atomic, const void *site) {
    const size_t offset = address - (uintptr_t)a->base;
    if (address < (uintptr_t)a->base || offset + (size_t)size > a->bytes) {
        sim_now.count->out_of_range++;
        sim_complain("out of range", site, "thread %d of block %u %s byte %lld of a %zu-byte allocation%s%s",
                     sim_now.current->index, sim_now.number, store ? "writes" : "reads",
                     (long long)(address - (uintptr_t)a->base), a->bytes, a->name.empty() ? "" : " ", a->name.c_str());
        return;
    }
    for (size_t w = offset / 4; w <= (offset + (size_t)size - 1) / 4; w++) {
        if (!store && !a->words[w].initialised) {
            sim_now.count->uninitialised++;
            sim_complain("uninitialised read", site, "thread %d of block %u reads global memory that nobody wrote%s%s",
                         sim_now.current->index, sim_now.number, a->name.empty() ? "" : ": ", a->name.c_str());
            a->words[w].initialised = true;
        }
        between_blocks(a->words[w], store, atomic, site);
    }
    if (!atomic) join_request(address, size, store, false, site);
}

static void shared_access(uintptr_t address, int size, bool store, bool atomic, const void *site) {
    for (uintptr_t w = address / 4; w <= (address + (uintptr_t)size - 1) / 4; w++) {
        shadow &s = shared_words.emplace(w, untouched).first->second;
        if (!store && !s.initialised) {
            sim_now.count->uninitialised++;
            sim_complain("uninitialised read", site, "thread %d of block %u reads shared memory that nobody wrote",
                         sim_now.current->index, sim_now.number);
            s.initialised = true;
        }
        within_block(s, store, atomic, "shared", site);
    }
    if (!atomic) join_request(address, size, store, true, site);
}

static void access(const void *p, int size, bool store, bool atomic, const void *site) {
    if (!sim_now.current) return;
    const uintptr_t address = (uintptr_t)p, stack = (uintptr_t)sim_now.current->stack;
    if (address - stack < SIM_STACK || address - (uintptr_t)sim_now.call < sim_now.call_bytes) return;
    const uintptr_t base = (uintptr_t)sim_dynamic_shared();
    if (address >= (uintptr_t)dynamic.data() && address < (uintptr_t)dynamic.data() + dynamic.size()) {
        if (address >= base && address + (uintptr_t)size <= base + dynamic_bytes)
            return shared_access(address, size, store, atomic, site);
        sim_now.count->out_of_range++;
        return sim_complain("out of range", site, "thread %d of block %u %s byte %lld of %zu bytes of shared memory",
                            sim_now.current->index, sim_now.number, store ? "writes" : "reads",
                            (long long)(address - base), dynamic_bytes);
    }
    if (address >= here().data && address < here().data_end) {
        if (address - (uintptr_t)&sim_here < sizeof sim_here || is_constant((const char *)p)) return;
        return shared_access(address, size, store, atomic, site);
    }
    allocation *a = find_device(p);
    if (a) return global_access(a, address, size, store, atomic, site);
    if (address >= here().constants && address < here().constants_end) return;
    sim_now.count->out_of_range++;
    sim_complain("bad pointer", site, "thread %d of block %u %s %p, which is not device memory", sim_now.current->index,
                 sim_now.number, store ? "writes" : "reads", p);
}

/* A matrix product reads shared memory: checked for races, not counted as requests of the threads. */
void sim_read_shared(const void *p, int bytes, const void *site) {
    for (uintptr_t w = (uintptr_t)p / 4; w <= ((uintptr_t)p + (uintptr_t)bytes - 1) / 4; w++)
        within_block(shared_words.emplace(w, untouched).first->second, false, false, "shared", site);
}

void sim_access(const void *p, int bytes, bool store, const void *site) { access(p, bytes, store, false, site); }

void sim_atomic(const void *p, int bytes, const void *site) {
    sim_now.count->atomics++;
    sim_now.acquired = sim_now.acquired || sim_now.fenced;
    access(p, bytes, true, true, site);
}

void sim_copied(const void *p, int bytes, const void *site) {
    allocation *a = find_device(p);
    const size_t first = a ? (size_t)((const char *)p - a->base) : 0;
    if (!a || first + (size_t)bytes > a->bytes)
        return sim_complain("out of range", site, "the copy engine reads %p, which is not device memory", p);
    for (size_t w = first / 4; w <= (first + (size_t)bytes - 1) / 4; w++)
        if (!a->words[w].initialised) {
            sim_now.count->uninitialised++;
            return sim_complain("uninitialised read", site, "the copy engine reads global memory that nobody wrote");
        }
    a->loaded += bytes;
}

void sim_memory_block_begin() { shared_words.clear(); }

/* The next block must not find this one's values. */
void sim_memory_block_end() {
    for (auto &entry : shared_words) memset((void *)(entry.first * 4), 0xff, 4);
    shared_words.clear();
}

/* ---- what -fsanitize=thread calls ---- */
#define SITE __builtin_return_address(0)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_read1(void *p) { access(p, 1, false, false, SITE); }
void __tsan_read2(void *p) { access(p, 2, false, false, SITE); }
void __tsan_read4(void *p) { access(p, 4, false, false, SITE); }
void __tsan_read8(void *p) { access(p, 8, false, false, SITE); }
void __tsan_read16(void *p) { access(p, 16, false, false, SITE); }
void __tsan_write1(void *p) { access(p, 1, true, false, SITE); }
void __tsan_write2(void *p) { access(p, 2, true, false, SITE); }
void __tsan_write4(void *p) { access(p, 4, true, false, SITE); }
void __tsan_write8(void *p) { access(p, 8, true, false, SITE); }
void __tsan_write16(void *p) { access(p, 16, true, false, SITE); }
void __tsan_unaligned_read2(void *p) { access(p, 2, false, false, SITE); }
void __tsan_unaligned_read4(void *p) { access(p, 4, false, false, SITE); }
void __tsan_unaligned_read8(void *p) { access(p, 8, false, false, SITE); }
void __tsan_unaligned_write2(void *p) { access(p, 2, true, false, SITE); }
void __tsan_unaligned_write4(void *p) { access(p, 4, true, false, SITE); }
void __tsan_unaligned_write8(void *p) { access(p, 8, true, false, SITE); }
void __tsan_volatile_read4(void *p) { access(p, 4, false, false, SITE); }
void __tsan_volatile_write4(void *p) { access(p, 4, true, false, SITE); }
int __tsan_atomic32_fetch_add(volatile int *p, int v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
long __tsan_atomic64_fetch_add(volatile long *p, long v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
void __tsan_read_range(void *p, size_t n) { access(p, (int)n, false, false, SITE); }
void __tsan_write_range(void *p, size_t n) { access(p, (int)n, true, false, SITE); }
}
