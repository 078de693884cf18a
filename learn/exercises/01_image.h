// 01_image.h — the checker of exercise 01. Define: __global__ void invert(const float *in, float *out, int width, int height)
#include "lesson.h"
__global__ void invert(const float *in, float *out, int width, int height);

int main() {
    lesson_begin("Exercise 01: one thread a pixel, out = 1 - in, for images of any size");
    for (const int *size : { new int[2]{ 16, 16 }, new int[2]{ 33, 7 }, new int[2]{ 1, 50 } }) {
        const int width = size[0], height = size[1];
        const std::vector<float> image = random_floats((size_t)width * height, 5);
        std::vector<double> want;
        for (float v : image) want.push_back(1.0 - v);
        float *in = to_device(image), *out = poisoned<float>(image.size());
        invert<<<dim3((width + 15) / 16, (height + 15) / 16), dim3(16, 16)>>>(in, out, width, height);
        CHECK_LAUNCH();
        char text[64];
        snprintf(text, sizeof text, "%d x %d pixels", width, height);
        compare(text, to_host(out, image.size()), want, 2e-7);
        CHECK(cudaFree(in));
        CHECK(cudaFree(out));
        delete[] size;
    }
    return lesson_end();
}
