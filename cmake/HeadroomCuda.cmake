# The CUDA kernels, kernels/cuda/*.cu, compiled for Hopper (sm_90a) where a CUDA toolkit is found.
# HEADROOM_CUDA: AUTO takes the toolkit if it is there, ON insists, OFF does not look. Defines
# HEADROOM_CUDA_FOUND and, when it is true, the object library headroom_cuda_objects.
set(HEADROOM_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (if a toolkit is found), ON or OFF")
set_property(CACHE HEADROOM_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT HEADROOM_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HEADROOM_CUDA is '${HEADROOM_CUDA}'; it must be AUTO, ON or OFF")
endif()

set(HEADROOM_CUDA_FOUND FALSE)
file(GLOB HEADROOM_CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu kernels/cuda/*.c)
# Looking for a compiler takes seconds, so AUTO does it only when there is something to compile.
if(HEADROOM_CUDA STREQUAL "OFF" OR (HEADROOM_CUDA STREQUAL "AUTO" AND NOT HEADROOM_CUDA_SOURCES))
  return()
endif()

# nvcc is often installed where PATH does not lead.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(HEADROOM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
  if(HEADROOM_NVCC)
    set(CMAKE_CUDA_COMPILER ${HEADROOM_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(HEADROOM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HEADROOM_CUDA=ON, but there is no CUDA compiler: nvcc was looked for in "
      "PATH, CUDACXX, CUDA_HOME and /usr/local/cuda")
  endif()
  message(STATUS "No CUDA compiler found: only the CPU kernels are built")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES 90a)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(HEADROOM_CUDA_FOUND TRUE)
message(STATUS "CUDA ${CUDAToolkit_VERSION}: kernels for sm_90a are built")
if(HEADROOM_CUDA_SOURCES)
  add_library(headroom_cuda_objects OBJECT ${HEADROOM_CUDA_SOURCES})
  # What ptxas only informs of, and would cost most of the speed, fails the build as well.
  set(guarded_nvcc sh ${PROJECT_SOURCE_DIR}/cmake/nvcc_guard.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(headroom_cuda_objects PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CUDA_STANDARD 17
    CUDA_VISIBILITY_PRESET hidden
    CUDA_COMPILER_LAUNCHER "${guarded_nvcc}")
  target_include_directories(headroom_cuda_objects PRIVATE include quant kernels)
  target_include_directories(headroom_cuda_objects SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(headroom_cuda_objects PRIVATE
    $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wshadow $<$<BOOL:${HEADROOM_WERROR}>:-Werror>>
    $<$<COMPILE_LANGUAGE:CUDA>:
      # Hopper's kernels are planned to the last register: one that spills fails the build.
      -Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error
      -Xcompiler=-Wall,-Wextra
      # The library stays a C library, without libstdc++.
      -Xcompiler=-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
      $<$<BOOL:${HEADROOM_WERROR}>:-Werror=all-warnings -Xcompiler=-Werror>>)
  # For what links the objects of the library instead of the library, as tests do.
  add_library(headroom_cuda STATIC $<TARGET_OBJECTS:headroom_cuda_objects>)
  set_target_properties(headroom_cuda PROPERTIES LINKER_LANGUAGE C)
  target_link_libraries(headroom_cuda PUBLIC CUDA::cudart_static)
endif()
