# install.cmake — what an installation holds: library, header, CMake package, pkg-config file, command, manual page and
# completions. Nothing in it knows an absolute path, so that the folder can move.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/attn)

install(TARGETS attn attn_static EXPORT attn-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/attn DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT attn-targets NAMESPACE attn:: DESTINATION ${package_dir})
configure_package_config_file(cmake/attn-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/attn-config.cmake
    INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may break users.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/attn-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/attn-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/attn-config-version.cmake
    DESTINATION ${package_dir})

file(RELATIVE_PATH ATTN_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" ATTN_PC_TO_PREFIX "${ATTN_PC_TO_PREFIX}")
configure_file(cmake/attn.pc.in attn.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/attn.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# The command describes itself; a cross build can't run it and goes without.
if(TARGET attn_cli)
    install(TARGETS attn_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    if(NOT CMAKE_CROSSCOMPILING)
        set(described attn.1 attn.bash _attn attn.fish)
        add_custom_command(OUTPUT ${described} DEPENDS attn_cli VERBATIM
            COMMAND attn_cli help --man > attn.1
            COMMAND attn_cli completion bash > attn.bash
            COMMAND attn_cli completion zsh > _attn
            COMMAND attn_cli completion fish > attn.fish)
        add_custom_target(attn_described ALL DEPENDS ${described})
        set(built ${CMAKE_CURRENT_BINARY_DIR})
        install(FILES ${built}/attn.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
        install(FILES ${built}/attn.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME attn)
        install(FILES ${built}/_attn DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
        install(FILES ${built}/attn.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
    endif()
endif()
