/* data.c — the life of a case's tensors: made, poisoned, hashed, counted, freed. */
#include "data.h"
#include <stdio.h>
#include <stdlib.h>

static attn_status start(check_data **out, const check_case *c, const check_memory *memory, int align_end) {
    *out = NULL;
    check_data *data = calloc(1, sizeof *data);
    if (!data) return ATTN_NO_MEMORY;
    data->what = *c;
    data->align_end = align_end;
    data->memory = memory ? *memory : check_host_memory;
    data->what.problem.device = data->memory.device;
    check_case_complete(&data->what);
    data->problem = data->what.problem;
    const attn_status status = attn_problem_resolve(&data->problem);
    if (status) {
        free(data);
        return status;
    }
    *out = data;
    return ATTN_OK;
}

static attn_status upload(check_data *data) {
    for (int n = 0; n < AREA_WORKSPACE; n++)
        if (check_area_upload(data, (area_name)n)) return ATTN_DEVICE_ERROR;
    return ATTN_OK;
}

attn_status check_data_create(check_data **out, const check_case *c, const check_memory *memory,
                              int align_end) {
    check_data *data;
    attn_status status = start(&data, c, memory, align_end);
    if (!status) status = check_areas_create(data, NULL);
    if (!status) {
        check_fill_lengths(data);
        status = check_fill_numbers(data);
    }
    if (!status) status = upload(data);
    if (status) check_data_destroy(data);
    *out = status ? NULL : data;
    return status;
}

attn_status check_data_from(check_data **out, const attn_problem *problem, const attn_tensors *host,
                            const check_memory *memory) {
    const check_case c = { .problem = *problem, .shape = "custom", .no_lse = 0 };
    check_data *data;
    attn_status status = start(&data, &c, memory, 1);
    if (!status) status = check_areas_create(data, host);
    if (!status) status = upload(data);
    if (status) check_data_destroy(data);
    *out = status ? NULL : data;
    return status;
}

void check_data_destroy(check_data *data) {
    if (!data) return;
    for (int n = 0; n < AREAS; n++) check_area_destroy(data, (area_name)n);
    answer *a = &data->answer;
    free(a->row_b);
    free(a->o);
    free(a->keys);
    free(data);
}

const attn_problem *check_data_problem(const check_data *data) { return &data->problem; }
const attn_tensors *check_data_tensors(const check_data *data) { return &data->tensors; }

/* ---- poison ---- */

static void poison_area(check_data *data, area_name name, attn_dtype dtype, int pattern) {
    area *a = &data->areas[name];
    if (!a->base) return;
    unsigned char *bytes = a->image;
    memset(bytes, pattern == 2 ? 0 : 0xFF, a->total);
    if (pattern == 0) {
        const int64_t size = check_element_size(dtype);
        for (int64_t i = 0; i < (int64_t)a->bytes / size; i++)
            check_narrow(bytes + a->offset, dtype, i, (double)NAN);
    }
    if (pattern == 3)
        for (size_t i = 0; i < a->total; i++)
            bytes[i] = (unsigned char)(check_mix(i / 8 + data->what.seed) >> i % 8 * 8);
    check_area_upload(data, name);
}

void check_data_poison(check_data *data, int pattern) {
    poison_area(data, AREA_O, data->problem.o_dtype, pattern);
    poison_area(data, AREA_LSE, ATTN_F32, pattern);
    poison_area(data, AREA_WORKSPACE, ATTN_F32, pattern);
    data->poisoned = 1;
}

void *check_data_workspace(check_data *data, size_t bytes) {
    check_area_destroy(data, AREA_WORKSPACE);
    if (!bytes) return NULL;
    if (check_area_create(data, AREA_WORKSPACE, bytes, 64)) return NULL;
    check_data_poison(data, 0);
    return data->areas[AREA_WORKSPACE].base + data->areas[AREA_WORKSPACE].offset;
}

/* ---- hash ---- */

static uint64_t hash_bytes(uint64_t hash, const unsigned char *bytes, int64_t count) {
    for (int64_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

uint64_t check_data_hash(check_data *data) {
    const attn_problem *p = &data->problem;
    uint64_t hash = 0xcbf29ce484222325u;
    for (int n = AREA_O; n <= AREA_LSE; n++) {
        const area *a = &data->areas[n];
        unsigned char *bytes = a->base ? malloc(a->total) : NULL;
        if (!bytes || data->memory.download(data->memory.context, bytes, a->base, a->total)) {
            free(bytes);
            continue;
        }
        const int64_t size = n == AREA_LSE ? 4 : check_element_size(p->o_dtype),
                      dims = n == AREA_LSE ? 1 : p->v_dim;
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t i = 0; i < check_q_rows(p, &data->host, b); i++)
                for (int64_t h = 0; h < p->q_heads; h++) {
                    const int64_t row = check_row_index(p, &data->host, b, i);
                    const int64_t place =
                        n == AREA_LSE ? check_lse_place(p, row, h) : check_q_place(p, p->o_stride, row, h);
                    hash = hash_bytes(hash, bytes + a->offset + place * size, dims * size);
                }
        free(bytes);
    }
    return hash;
}

/* ---- work ---- */

check_work check_data_work(const check_data *data) {
    const attn_problem *p = &data->problem;
    const double pairs = check_pairs(data), size = (double)check_element_size(p->dtype);
    double q_rows = 0, kv_rows = 0;
    for (int64_t b = 0; b < p->batch; b++) {
        q_rows += (double)check_queries(p, &data->host, b);
        kv_rows += (double)check_keys(p, &data->host, b);
    }
    const double q = q_rows * (double)p->q_heads, kv = kv_rows * (double)p->kv_heads;
    check_work work = { .flops = 2 * pairs * (double)(p->qk_dim + p->v_dim) };
    work.bytes = q * (double)p->qk_dim * size +
                 q * (double)p->v_dim * (double)check_element_size(p->o_dtype) + q * 4 +
                 kv * (double)(p->qk_dim + (p->v_in_k ? 0 : p->v_dim)) * size;
    return work;
}
