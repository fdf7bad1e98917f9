# headroom_flags: the warnings and sanitizers every target of the project is built with.
add_library(headroom_flags INTERFACE)
target_compile_options(headroom_flags INTERFACE
  -Wall -Wextra -Wshadow -Wpointer-arith -Wvla
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes> $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>
  -ffp-contract=off # a fused multiply-add is written as one, so that every build rounds alike
  -fno-trapping-math # nobody reads the exception flags; gcc vectorises selections only with this
  $<$<BOOL:${HEADROOM_WERROR}>:-Werror>)
target_compile_definitions(headroom_flags INTERFACE _GNU_SOURCE)
target_link_libraries(headroom_flags INTERFACE m)
if(HEADROOM_SANITIZE)
  target_compile_options(headroom_flags INTERFACE
    -fsanitize=${HEADROOM_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(headroom_flags INTERFACE -fsanitize=${HEADROOM_SANITIZE})
endif()
if(HEADROOM_BUILD_FUZZERS)
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "HEADROOM_BUILD_FUZZERS needs -DCMAKE_C_COMPILER=clang; "
                        "the compiler is ${CMAKE_C_COMPILER_ID}")
  endif()
  target_compile_options(headroom_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
