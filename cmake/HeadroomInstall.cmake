# What `cmake --install` puts where: headers, both libraries, the CLI, the report's schema, the
# recorder, and the files by which find_package(Headroom) and pkg-config find them.
include(CMakePackageConfigHelpers)

set(HEADROOM_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/Headroom)
set(HEADROOM_DATA_DIR ${CMAKE_INSTALL_DATADIR}/headroom)

install(DIRECTORY include/headroom TYPE INCLUDE FILES_MATCHING PATTERN "*.h")
install(TARGETS headroom_shared EXPORT HeadroomTargets
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS headroom_static EXPORT HeadroomStaticTargets
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
foreach(set HeadroomTargets HeadroomStaticTargets)
  install(EXPORT ${set} NAMESPACE Headroom:: DESTINATION ${HEADROOM_CMAKE_DIR})
endforeach()
if(TARGET headroom_cli)
  install(TARGETS headroom_cli)
endif()
install(FILES tools/report.schema.json DESTINATION ${HEADROOM_DATA_DIR})
install(PROGRAMS tools/record_activations.py DESTINATION ${HEADROOM_DATA_DIR})

if(HEADROOM_CUDA_FOUND)
  set(HEADROOM_CONFIG_CUDA_NOTE ", CUDA")
endif()
configure_package_config_file(cmake/HeadroomConfig.cmake.in HeadroomConfig.cmake
  INSTALL_DESTINATION ${HEADROOM_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(HeadroomConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/HeadroomConfig.cmake
              ${PROJECT_BINARY_DIR}/HeadroomConfigVersion.cmake
        DESTINATION ${HEADROOM_CMAKE_DIR})

# The prefix is written relative to the file, so that an installation can be moved.
file(RELATIVE_PATH HEADROOM_PC_PREFIX
     /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
string(REGEX REPLACE "/$" "" HEADROOM_PC_PREFIX "${HEADROOM_PC_PREFIX}")
set(HEADROOM_PC_REQUIRES "jansson >= 2.12, libxxhash >= 0.8")
set(HEADROOM_PC_LIBS_PRIVATE "-lm ${OpenMP_C_FLAGS}")
if(HEADROOM_CUDA_FOUND)
  string(APPEND HEADROOM_PC_LIBS_PRIVATE
         " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread")
endif()
configure_file(cmake/headroom.pc.in headroom.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/headroom.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
