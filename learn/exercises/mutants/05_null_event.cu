// Wrong on purpose: waits for a null event and ignores the error: nothing is ordered.
// rejected by: NO
#include "../05_streams.h"

void pipeline(float *in, float *out, const float *host_in, float *host_out, int n, cudaStream_t load, cudaStream_t run) {
    cudaEvent_t arrived;
    CHECK(cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming));
    CHECK(cudaMemcpyAsync(in, host_in, n * sizeof(float), cudaMemcpyHostToDevice, load));
    CHECK(cudaEventRecord(arrived, load));
    (void)cudaStreamWaitEvent(run, nullptr, 0);
    increment<<<(n + 255) / 256, 256, 0, run>>>(in, out, n);
    CHECK(cudaMemcpyAsync(host_out, out, n * sizeof(float), cudaMemcpyDeviceToHost, run));
    CHECK(cudaStreamSynchronize(run));
    CHECK(cudaEventDestroy(arrived));
}
