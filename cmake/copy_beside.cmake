# copy_beside.cmake — put a shared library from a package, which programs link against, into packages/ of the build folder
# under the name that the loader looks for, so that a build folder copied to a machine without that package still runs.
function(attn_copy_beside target library)
    file(REAL_PATH ${library} real)
    get_filename_component(name ${real} NAME)
    if(NOT name MATCHES "^(lib.*\\.so\\.[0-9]+)")
        return()   # a static library
    endif()
    add_custom_command(TARGET ${target} POST_BUILD VERBATIM
        COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/packages
        COMMAND ${CMAKE_COMMAND} -E copy_if_different ${real} ${PROJECT_BINARY_DIR}/packages/${CMAKE_MATCH_1})
endfunction()
