# Kernel sources and their flags. A file kernels/cpu/*_<isa>.c is compiled with that instruction set,
# on the architecture that has it; every other file with the compiler's baseline.
file(GLOB kernel_files CONFIGURE_DEPENDS kernels/cpu/*.c)

set(isa_flags_avx2 -mavx2 -mfma -mf16c)
set(isa_flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
    -mprefer-vector-width=512)
set(isa_flags_avx512vnni ${isa_flags_avx512} -mavx512vnni -mavx512vbmi)
set(isa_flags_neon -march=armv8.2-a+dotprod+fp16)

set(HEADROOM_KERNEL_SOURCES)
foreach(file IN LISTS kernel_files)
  string(REGEX MATCH "_(avx2|avx512|avx512vnni|neon)\\.c$" matched ${file})
  set(isa ${CMAKE_MATCH_1})
  if(NOT matched)
    list(APPEND HEADROOM_KERNEL_SOURCES ${file})
  elseif((isa MATCHES "^avx" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
         OR (isa STREQUAL "neon" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$"))
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${isa_flags_${isa}}")
    list(APPEND HEADROOM_KERNEL_SOURCES ${file})
  endif()
endforeach()
