# command_tests.cmake — the command, its file formats, the installation and the fuzz corpora.

# The example in the README, and the installation as its users see it.
add_executable(example_first ${PROJECT_SOURCE_DIR}/examples/first.c)
target_link_libraries(example_first PRIVATE attn attn_build_flags)
add_test(NAME example_first COMMAND example_first)
set_tests_properties(example_first PROPERTIES PASS_REGULAR_EXPRESSION "query 3: o = ")
add_test(NAME package COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/test_package.sh ${PROJECT_BINARY_DIR})
set_tests_properties(package PROPERTIES TIMEOUT 300)

# Parts of the command, tested inside.
set(cli ${PROJECT_SOURCE_DIR}/cli)
if(ATTN_BUILD_CLI)
    target_sources(test_formats PRIVATE ${cli}/npy.c ${cli}/safetensors.c ${cli}/json_memory.c ${cli}/tensor.c ${cli}/tensor_file.c
        ${cli}/output.c ${cli}/terminal.c)
    target_sources(test_options PRIVATE ${cli}/options.c ${cli}/problem_options.c ${cli}/terminal.c)
    target_sources(test_bench_decode PRIVATE ${cli}/bench_decode_step.c ${cli}/bench_decode_check.c)
    foreach(test test_formats test_options test_bench_decode)
        target_include_directories(${test} PRIVATE ${cli} ${CJSON_INCLUDE})
        target_link_libraries(${test} PRIVATE ${CJSON_LIBRARY})
    endforeach()
    find_package(Python3 COMPONENTS Interpreter QUIET)
    if(Python3_FOUND)
        add_test(NAME tile_ring COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/test_tile_ring.py)
        add_test(NAME early_start COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/test_early_start.py)
        add_test(NAME cli COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/test_cli.py $<TARGET_FILE:attn_cli>)
        add_test(NAME cli_usage COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/test_cli_usage.py
            $<TARGET_FILE:attn_cli>)
        add_test(NAME cli_cache COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/test_cli_cache.py
            $<TARGET_FILE:attn_cli>)
        set_tests_properties(cli cli_usage cli_cache PROPERTIES TIMEOUT 300)
        if(NOT ATTN_SANITIZE AND NOT CMAKE_C_FLAGS MATCHES coverage)   # those allocate for themselves
            add_library(fail_malloc SHARED fail_malloc.c)
            set_target_properties(fail_malloc PROPERTIES C_EXTENSIONS OFF)
            set_tests_properties(cli PROPERTIES ENVIRONMENT "ATTN_FAIL_MALLOC=$<TARGET_FILE:fail_malloc>")
        endif()
    endif()
endif()

add_subdirectory(fuzz)
