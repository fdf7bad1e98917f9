# Sources with instruction-set variants and their flags. A file kernels/cpu/*_<isa>.c or
# quant/*_<isa>.c is compiled with that instruction set, on the architecture that has it; every
# other file with the compiler's baseline.
set(isa_flags_avx2 -mavx2 -mfma -mf16c)
set(isa_flags_avxvnni ${isa_flags_avx2} -mavxvnni)
set(isa_flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
    -mprefer-vector-width=512)
set(isa_flags_avx512vnni ${isa_flags_avx512} -mavx512vnni -mavx512vbmi)
set(isa_flags_avx512fp16 ${isa_flags_avx512vnni} -mavx512fp16)
set(isa_flags_neon -march=armv8.2-a+dotprod+fp16)
set(isa_flags_neoni8mm ${isa_flags_neon}+i8mm)

# headroom_isa_sources(<out> <file>...): the files this architecture compiles, with their flags set.
function(headroom_isa_sources out)
  set(kept)
  foreach(file IN LISTS ARGN)
    string(REGEX MATCH "_(avx2|avxvnni|avx512|avx512vnni|avx512fp16|neon|neoni8mm)\\.c$" matched ${file})
    set(isa ${CMAKE_MATCH_1})
    if(NOT matched)
      list(APPEND kept ${file})
    elseif((isa MATCHES "^avx" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
           OR (isa MATCHES "^neon" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$"))
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${isa_flags_${isa}}")
      list(APPEND kept ${file})
    endif()
  endforeach()
  set(${out} ${kept} PARENT_SCOPE)
endfunction()

file(GLOB kernel_files CONFIGURE_DEPENDS kernels/cpu/*.c)
headroom_isa_sources(HEADROOM_KERNEL_SOURCES ${kernel_files})
# Unrolled as they are, the decode kernels take clang minutes each with a sanitizer's checks in them,
# and seconds without optimization.
if(HEADROOM_SANITIZE)
  set(decode_files ${kernel_files})
  list(FILTER decode_files INCLUDE REGEX "_decode_avx[a-z0-9]*\\.c$")
  set_property(SOURCE ${decode_files} APPEND PROPERTY COMPILE_OPTIONS -O0)
endif()
file(GLOB quant_files CONFIGURE_DEPENDS quant/*.c)
headroom_isa_sources(HEADROOM_QUANT_SOURCES ${quant_files})
