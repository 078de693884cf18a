/* image.c — embedded fatbins become loaded kernels: once per process, entry and device, kept
 * for the process's life. The driver's "library" is context-independent, so that nothing
 * here holds or owns a context. */
#include "launch.h"
#include "image.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct image_node image_node;
struct image_node { image_node *next; const void *image; cu_library library; };

static image_node *images;          /* grow only, under `lock`; nodes are immutable but for smem */
static attn_cuda_entry *entries;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static attn_status find_image(image_node **out, const attn_cuda_driver *driver, const void *image,
                              const char *name) {
    for (*out = images; *out; *out = (*out)->next)
        if ((*out)->image == image) return ATTN_OK;
    image_node *node = malloc(sizeof *node);
    if (!node) return attn_fail(ATTN_NO_MEMORY, "out of memory for a CUDA image");
    const cu_result result = driver->LibraryLoadData(&node->library, image, NULL, NULL, 0, NULL, NULL, 0);
    if (result) {
        free(node);
        return attn_cuda_fail(result, "loading the image of", name);
    }
    node->image = image;
    node->next = images;
    *out = images = node;
    return ATTN_OK;
}

static attn_status find_entry(attn_cuda_entry **out, const attn_cuda_driver *driver, int ordinal,
                              const void *image, const char *name) {
    for (*out = entries; *out; *out = (*out)->next)
        if ((*out)->image == image && (*out)->ordinal == ordinal && !strcmp((*out)->name, name))
            return ATTN_OK;
    image_node *library;
    attn_status status = find_image(&library, driver, image, name);
    if (status) return status;
    attn_cuda_entry *entry = calloc(1, sizeof *entry);
    if (!entry) return attn_fail(ATTN_NO_MEMORY, "out of memory for a CUDA kernel");
    *entry = (attn_cuda_entry){ .next = entries, .image = image, .name = name, .ordinal = ordinal };
    cu_result result = driver->DeviceGet(&entry->device, ordinal);
    if (!result) result = driver->LibraryGetKernel(&entry->kernel, library->library, name);
    if (result) {
        free(entry);
        return attn_cuda_fail(result, "finding the CUDA kernel", name);
    }
    *out = entries = entry;
    return ATTN_OK;
}

/* Lazy loading would put the upload of the code into the first launch, which may be a captured one:
 * do it now, in the current context if it belongs to the device, else in the primary one. */
static cu_result load_now(const attn_cuda_driver *driver, const attn_cuda_entry *entry) {
    attn_cuda_scope scope;
    cu_function function;
    cu_result result = attn_cuda_enter(&scope, driver, entry->device, NULL);
    if (result) return result;
    result = driver->KernelGetFunction(&function, entry->kernel);
    if (!result && driver->FuncLoad) result = driver->FuncLoad(function);
    attn_cuda_leave(&scope, driver);
    return result;
}

static attn_status prepare_locked(attn_cuda_entry **out, const attn_cuda_driver *driver, int ordinal,
                                  const void *image, const char *name, int smem) {
    attn_status status = find_entry(out, driver, ordinal, image, name);
    if (status) return status;
    attn_cuda_entry *entry = *out;
    if (smem > entry->smem) {
        const cu_result result = driver->KernelSetAttribute(CU_FUNCTION_MAX_DYNAMIC_SMEM, smem, entry->kernel,
                                                            entry->device);
        if (result) return attn_cuda_fail(result, "reserving shared memory for", name);
        entry->smem = smem;
    }
    if (!entry->loaded) {
        const cu_result result = load_now(driver, entry);
        if (result) return attn_cuda_fail(result, "loading the CUDA kernel", name);
        entry->loaded = 1;
    }
    return ATTN_OK;
}

attn_status attn_cuda_prepare(attn_plan *plan, int slot, const void *image, const char *name, int smem) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    attn_cuda_entry *entry;
    (void)pthread_mutex_lock(&lock);
    const attn_status status = prepare_locked(&entry, driver, plan->cuda_device, image, name, smem);
    (void)pthread_mutex_unlock(&lock);
    if (!status) plan->device_code[slot] = entry;
    return status;
}
