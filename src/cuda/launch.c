/* launch.c — running a plan on the tensors' own device: place checks, context, launch. Nothing is allocated,
 * copied or synchronised; every driver call here is legal while a stream is being captured. */
#include "launch.h"
#include "image.h"

/* ---- contexts ---- */

cu_result attn_cuda_enter(attn_cuda_scope *scope, const attn_cuda_driver *driver, cu_device device,
                          cu_context context) {
    cu_context current = NULL;
    cu_device current_device = -1;
    *scope = (attn_cuda_scope){ .device = device };
    cu_result result = driver->CtxGetCurrent(&current);
    if (!result && current && (context ? current == context
                                       : !driver->CtxGetDevice(&current_device) && current_device == device))
        return CU_OK;
    if (!result && !context) {
        result = driver->DevicePrimaryCtxRetain(&context, device);
        scope->retained = !result;
    }
    if (!result) result = driver->CtxPushCurrent(context);
    scope->pushed = !result;
    if (result && scope->retained) (void)driver->DevicePrimaryCtxRelease(device);
    return result;
}

void attn_cuda_leave(const attn_cuda_scope *scope, const attn_cuda_driver *driver) {
    cu_context popped;
    if (scope->pushed) (void)driver->CtxPopCurrent(&popped);
    if (scope->retained) (void)driver->DevicePrimaryCtxRelease(scope->device);
}

/* ---- where the tensors are ---- */

typedef struct { const char *field; const void *pointer; } field_row;
enum { MAX_FIELDS = 32 };

/* The pointers that this problem uses; the others may be anything. */
static int used_fields(field_row rows[MAX_FIELDS], const attn_plan *plan, const attn_tensors *t,
                       const field_row *memory) {
    const attn_problem *p = &plan->problem;
    const int append = p->pass == ATTN_KV_APPEND, forward = !append, q = forward || p->write_q;
    const int turned = append && p->rotary_dim;
    const struct { const char *field; const void *pointer; int used; } all[] = {
        { "q", t->q, q }, { "k", t->k, 1 }, { "v", t->v, 1 }, { "o", t->o, forward },
        { "lse", t->lse, forward }, { "bias", t->bias, forward && p->bias_dtype },
        { "mask", t->mask, forward && p->has_mask },
        { "alibi_slopes", t->alibi_slopes, forward && p->alibi },
        { "sinks", t->sinks, forward && p->has_sinks },
        { "k_new", t->k_new, append }, { "v_new", t->v_new, append && !p->v_in_k },
        { "q_out", t->q_out, append && p->write_q }, { "rotary_cos", t->rotary_cos, turned },
        { "rotary_sin", t->rotary_sin, turned },
        { "rotary_offsets", t->rotary_offsets, turned && p->has_rotary_offsets },
        { "cu_seqlens_new", t->cu_seqlens_new, append && p->packed_new },
        { "seqused_kv_out", t->seqused_kv_out, append },
        { "cu_seqlens_q", t->cu_seqlens_q, q && p->packed_q },
        { "cu_seqlens_kv", t->cu_seqlens_kv, p->packed_kv },
        { "seqused_q", t->seqused_q, q && p->has_seqused_q },
        { "seqused_kv", t->seqused_kv, p->has_seqused_kv },
        { "leftpad_kv", t->leftpad_kv, p->has_leftpad_kv },
        { "kv_batch_index", t->kv_batch_index, p->has_kv_batch_index },
        { "block_table", t->block_table, p->page_size != 0 },
        { "schedule", t->schedule, plan->schedule_bytes != 0 },
        { memory->field, memory->pointer, memory->pointer != NULL },
    };
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].used && all[i].pointer) rows[count++] = (field_row){ all[i].field, all[i].pointer };
    return count;
}

/* One pointer: device memory of device `ordinal`. *context: where it was allocated, NULL for pool memory. */
static attn_status check_place(const attn_cuda_driver *driver, const field_row *row, int ordinal,
                               cu_context *context) {
    int attributes[] = { CU_POINTER_CONTEXT, CU_POINTER_MEMORY_TYPE, CU_POINTER_IS_MANAGED,
                         CU_POINTER_ORDINAL };
    unsigned type = 0, managed = 0;
    int device = -1;
    void *values[] = { context, &type, &managed, &device };
    *context = NULL;
    const cu_result result = driver->PointerGetAttributes(4, attributes, values,
                                                          (cu_pointer)(uintptr_t)row->pointer);
    if (result) return attn_cuda_fail(result, "asking for the device of tensor", row->field);
    if (!managed && type != CU_MEMORY_DEVICE)
        return attn_fail(ATTN_INVALID, "tensors.%s = %p: is not CUDA device memory (the problem says "
                         "device = ATTN_CUDA)", row->field, row->pointer);
    if (!managed && device != ordinal)
        return attn_fail(ATTN_INVALID, "tensors.%s = %p: lives on CUDA device %d, the plan is for device %d "
                         "(options.cuda_device)", row->field, row->pointer, device, ordinal);
    return ATTN_OK;
}

static attn_status check_places(const attn_cuda_driver *driver, const attn_plan *plan, const attn_tensors *t,
                                const field_row *memory, cu_context *context) {
    field_row rows[MAX_FIELDS];
    const int count = used_fields(rows, plan, t, memory);
    *context = NULL;
    for (int i = 0; i < count; i++) {
        cu_context here;
        const attn_status status = check_place(driver, &rows[i], plan->cuda_device, &here);
        if (status) return status;
        if (!i) *context = here;
    }
    return ATTN_OK;
}

/* ---- streams ---- */

/* The default streams (NULL, legacy 1, per-thread 2) belong to whatever context is current. */
static attn_status stream_context(const attn_cuda_driver *driver, cu_stream stream, cu_context *context) {
    if ((uintptr_t)stream <= 2) return ATTN_OK;
    cu_context owner = NULL;
    const cu_result result = driver->StreamGetCtx(stream, &owner);
    if (result) return attn_cuda_fail(result, "asking for the context of", "stream");
    *context = owner;
    return ATTN_OK;
}

static attn_status check_default_stream(const attn_cuda_driver *driver, cu_stream stream) {
    int capturing = 0;
    if ((uintptr_t)stream > 1) return ATTN_OK;
    if (driver->StreamIsCapturing(stream, &capturing) == CU_STREAM_CAPTURE_IMPLICIT)
        return attn_fail(ATTN_INVALID, "stream = NULL: another stream is being captured, and the default "
                         "stream can't run meanwhile; pass the capturing stream");
    return ATTN_OK;
}

static attn_status check_stream_device(const attn_cuda_driver *driver, const attn_plan *plan) {
    cu_device device = -1, planned = -1;
    if (driver->CtxGetDevice(&device) || driver->DeviceGet(&planned, plan->cuda_device) || device == planned)
        return ATTN_OK;
    return attn_fail(ATTN_INVALID, "stream: belongs to another CUDA device than the tensors (%d)",
                     plan->cuda_device);
}

/* Queue `work` of the plan's kernel on the device of its tensors. */
static attn_status queue(const attn_plan *plan, const attn_tensors *t, const field_row *memory,
                         cu_stream stream,
                         attn_status (*work)(const attn_plan *, const attn_tensors *, void *, void *)) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    cu_context context;
    cu_device device;
    attn_cuda_scope scope;
    attn_status status = check_places(driver, plan, t, memory, &context);
    if (!status) status = stream_context(driver, stream, &context);
    if (status) return status;
    cu_result result = driver->DeviceGet(&device, plan->cuda_device);
    if (!result) result = attn_cuda_enter(&scope, driver, device, context);
    if (result) return attn_cuda_fail(result, "entering the context of", "the tensors");
    status = check_stream_device(driver, plan);
    if (!status) status = check_default_stream(driver, stream);
    if (!status && plan->checked && work == plan->kernel->run)
        status = attn_cuda_check_lengths(&plan->problem, t, stream);
    if (!status) status = work(plan, t, (void *)(uintptr_t)memory->pointer, stream);
    attn_cuda_leave(&scope, driver);
    return status;
}

attn_status attn_cuda_run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const field_row memory = { "workspace", plan->workspace ? workspace : NULL };
    return queue(plan, t, &memory, stream, plan->kernel->run);
}

attn_status attn_cuda_schedule(const attn_plan *plan, const attn_tensors *lengths, void *schedule,
                               void *stream) {
    const field_row memory = { "schedule", schedule };
    return queue(plan, lengths, &memory, stream, plan->kernel->schedule);
}

/* ---- launches ---- */

attn_status attn_cuda_aligned(const attn_problem *p, const attn_tensors *t, int bytes) {
    const field_row rows[] = { { "q", t->q }, { "k", t->k }, { "v", t->v }, { "o", t->o },
                               { "bias", p->bias_dtype ? t->bias : NULL } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if ((uintptr_t)rows[i].pointer % (unsigned)bytes)
            return attn_fail(ATTN_INVALID, "tensors.%s = %p: this kernel needs it aligned to %d bytes "
                             "(options.kernel = \"reference_fwd_cuda\" takes any)", rows[i].field,
                             rows[i].pointer, bytes);
    return ATTN_OK;
}

static unsigned set_attributes(cu_launch_attribute attributes[2], const attn_cuda_grid *grid) {
    unsigned count = 0;
    if (grid->cluster > 1)
        attributes[count++] = (cu_launch_attribute){ .id = CU_LAUNCH_CLUSTER_DIMENSION,
                                                     .value.cluster = { (unsigned)grid->cluster, 1, 1 } };
    if (grid->overlap)
        attributes[count++] = (cu_launch_attribute){ .id = CU_LAUNCH_PROGRAMMATIC_SERIALIZATION,
                                                     .value.flag = 1 };
    return count;
}

attn_status attn_cuda_launch(const attn_plan *plan, int slot, const attn_cuda_grid *grid, void *stream,
                             void **arguments) {
    const attn_cuda_driver *driver = attn_cuda();
    const attn_cuda_entry *entry = plan->device_code[slot];
    if (!driver) return ATTN_DEVICE_ERROR;
    const int64_t y = grid->blocks_y ? grid->blocks_y : 1, z = grid->blocks_z ? grid->blocks_z : 1;
    if (grid->blocks > INT32_MAX || y > 65535 || z > 65535)
        return attn_fail(ATTN_UNSUPPORTED,
                         "kernel %s: a grid of %lld x %lld x %lld blocks is more than CUDA can start",
                         plan->kernel->name, (long long)grid->blocks, (long long)y, (long long)z);
    if (grid->blocks <= 0) return ATTN_OK;
    cu_launch_attribute attributes[2];
    const cu_launch_config config = {
        .grid_x = (unsigned)grid->blocks, .grid_y = (unsigned)y, .grid_z = (unsigned)z,
        .block_x = (unsigned)grid->threads, .block_y = grid->threads_y ? (unsigned)grid->threads_y : 1,
        .block_z = 1, .smem_bytes = (unsigned)grid->smem, .stream = stream, .attributes = attributes,
        .attribute_count = set_attributes(attributes, grid) };
    /* cuLaunchKernelEx takes a context-independent kernel in the place of a function. */
    const cu_result result = driver->LaunchKernelEx(&config, (cu_function)(void *)entry->kernel, arguments,
                                                    NULL);
    return result ? attn_cuda_fail(result, "launching", entry->name) : ATTN_OK;
}
