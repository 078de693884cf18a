/* sim_plugin.hpp — a CUDA plug-in kernel under the simulator (sim_plugin.cpp), for the attn command and sim_lesson.cpp. */
#ifndef CUDA_SIM_PLUGIN_HPP
#define CUDA_SIM_PLUGIN_HPP
#include "attn/attn_plugin.h"

const char *sim_plugin_refuse(const attn_problem *problem);
/* Tensors are host memory. ATTN_DEVICE_ERROR: the simulator reported a race, a bad access or a failed launch. */
attn_status sim_plugin_run(const attn_problem *problem, const attn_tensors *tensors, void *, void *);
void sim_plugin_counted(attn_traffic *out);     /* bytes that the last run's warps asked for, by tensor */
const attn_plugin &sim_plugin_inside();         /* the kernel itself, with what it claims to move */
#endif
