# copy_beside.cmake — put the shared library that a program links against beside it in the build folder, under the name
# that the loader looks for, so that a build folder copied to a machine without that package still runs.
function(attn_copy_beside target library)
    file(REAL_PATH ${library} real)
    get_filename_component(name ${real} NAME)
    if(NOT name MATCHES "^(lib.*\\.so\\.[0-9]+)")
        return()   # a static library
    endif()
    add_custom_command(TARGET ${target} POST_BUILD VERBATIM
        COMMAND ${CMAKE_COMMAND} -E copy_if_different ${real} $<TARGET_FILE_DIR:${target}>/${CMAKE_MATCH_1})
endfunction()
