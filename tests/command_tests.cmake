# command_tests.cmake — the command, its file formats, the installation and the fuzz corpora.

# The example in the README, and the installation as its users see it.
add_executable(example_first ${PROJECT_SOURCE_DIR}/examples/first.c)
target_link_libraries(example_first PRIVATE attn attn_build_flags)
add_test(NAME example_first COMMAND example_first)
set_tests_properties(example_first PROPERTIES PASS_REGULAR_EXPRESSION "query 3: o = ")
add_test(NAME package COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/test_package.sh ${PROJECT_BINARY_DIR})
set_tests_properties(package PROPERTIES TIMEOUT 300)

add_subdirectory(fuzz)
