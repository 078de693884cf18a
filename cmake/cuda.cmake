# cuda.cmake — device code: every src/cuda/*.cu becomes a fatbin, the fatbin an object with the symbols
# attn_image_<stem> and attn_image_<stem>_end. nvcc is called as a plain command: the project's language stays C.
# The suffix decides the targets: *_sm90.cu is an sm_90a cubin alone, everything else sm_80 + sm_90 cubins + PTX.

# ATTN_WITH_CUDA: AUTO takes nvcc if it is found and works.
function(attn_find_nvcc)
    set(ATTN_WITH_CUDA OFF PARENT_SCOPE)
    if(ATTN_CUDA STREQUAL "OFF")
        message(STATUS "attn: CPU only (ATTN_CUDA=OFF)")
        return()
    endif()
    find_program(ATTN_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(ATTN_NVCC AND NOT ATTN_NVCC_WORKS STREQUAL "${ATTN_NVCC}")
        set(probe ${CMAKE_CURRENT_BINARY_DIR}/cuda/probe.cu)
        file(WRITE ${probe} "extern \"C\" __global__ void probe() {}\n")
        execute_process(COMMAND ${ATTN_NVCC} -std=c++17 -fatbin -gencode arch=compute_90a,code=sm_90a -o ${probe}.fatbin
            ${probe} RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
        if(NOT failed)
            set(ATTN_NVCC_WORKS ${ATTN_NVCC} CACHE INTERNAL "the nvcc that compiled a probe")
            execute_process(COMMAND ${ATTN_NVCC} --version OUTPUT_VARIABLE version)
            string(REGEX MATCH "release ([0-9]+)" version "${version}")
            set(ATTN_NVCC_MAJOR ${CMAKE_MATCH_1} CACHE INTERNAL "its major version")
        elseif(ATTN_CUDA STREQUAL "ON")
            message(FATAL_ERROR "ATTN_CUDA=ON: ${ATTN_NVCC} doesn't compile (12.0 or later is needed)\n${log}")
        endif()
    endif()
    if(ATTN_NVCC AND ATTN_NVCC_WORKS STREQUAL "${ATTN_NVCC}")
        set(ATTN_WITH_CUDA ON PARENT_SCOPE)
        message(STATUS "attn: CUDA kernels with ${ATTN_NVCC}")
    elseif(ATTN_CUDA STREQUAL "ON")
        message(FATAL_ERROR "ATTN_CUDA=ON: nvcc not found (set CUDA_PATH or put it on the PATH)")
    else()
        message(STATUS "attn: CPU only (no working nvcc)")
    endif()
endfunction()

# Add the images of `sources` to `target`.
function(attn_add_cuda_images target)
    set(work ${CMAKE_CURRENT_BINARY_DIR}/cuda)
    set(exceptions ${CMAKE_CURRENT_SOURCE_DIR}/src/cuda/spills.txt)
    set(script ${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_cuda.cmake)
    set(small OFF)
    if(ATTN_NVCC_MAJOR GREATER_EQUAL 13)
        set(small ON)
    endif()
    set(sm80 "-gencode=arch=compute_80,code=sm_80|-gencode=arch=compute_90,code=sm_90|-gencode=arch=compute_80,code=compute_80")
    foreach(source ${ARGN})
        get_filename_component(stem ${source} NAME_WE)
        set(archs "${sm80}")
        if(stem MATCHES "_sm90$")
            set(archs "-gencode=arch=compute_90a,code=sm_90a")
        endif()
        set(fatbin ${work}/${stem}.fatbin)
        add_custom_command(OUTPUT ${fatbin}
            COMMAND ${CMAKE_COMMAND} -DNVCC=${ATTN_NVCC} -DSOURCE=${source} -DFATBIN=${fatbin} -DARCHS=${archs}
                -DINCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/include -DEXCEPTIONS=${exceptions}
                -DLINE_INFO=$<CONFIG:Debug,RelWithDebInfo> -DSMALL=${small} -P ${script}
            DEPENDS ${source} ${exceptions} ${script} DEPFILE ${fatbin}.d VERBATIM
            COMMENT "nvcc ${stem}.cu")
        set(ATTN_STEM ${stem})
        set(ATTN_FATBIN ${fatbin})
        configure_file(${CMAKE_CURRENT_SOURCE_DIR}/cmake/image.c.in ${work}/${stem}_image.c @ONLY)
        set_source_files_properties(${work}/${stem}_image.c PROPERTIES OBJECT_DEPENDS ${fatbin})
        target_sources(${target} PRIVATE ${work}/${stem}_image.c ${fatbin})
    endforeach()
endfunction()
