// Wrong on purpose: waits for the event before it is recorded: an empty event is already done.
// rejected by: NO
#include "../05_streams.h"

void pipeline(float *in, float *out, const float *host_in, float *host_out, int n, cudaStream_t load, cudaStream_t run) {
    cudaEvent_t arrived;
    CHECK(cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming));
    CHECK(cudaMemcpyAsync(in, host_in, n * sizeof(float), cudaMemcpyHostToDevice, load));
    CHECK(cudaStreamWaitEvent(run, arrived, 0));
    CHECK(cudaEventRecord(arrived, load));
    increment<<<(n + 255) / 256, 256, 0, run>>>(in, out, n);
    CHECK(cudaMemcpyAsync(host_out, out, n * sizeof(float), cudaMemcpyDeviceToHost, run));
    CHECK(cudaStreamSynchronize(run));
    CHECK(cudaEventDestroy(arrived));
}
