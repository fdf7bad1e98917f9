# Writes headroom_commit.h with the abbreviated git commit ("" outside a checkout) at every build;
# the file changes, and its users rebuild, only when the commit does.
#
# Included by the project it defines the target headroom_commit; run as a script (-P) it writes OUT.
if(CMAKE_SCRIPT_MODE_FILE)
  cmake_minimum_required(VERSION 3.25)
  set(commit "")
  find_program(GIT git)
  if(GIT AND EXISTS "${SOURCE}/.git")
    execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --short=12 HEAD
                    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
                    ERROR_QUIET RESULT_VARIABLE failed)
    if(failed)
      set(commit "")
    else()
      execute_process(COMMAND ${GIT} -C ${SOURCE} diff --quiet HEAD -- RESULT_VARIABLE dirty
                      ERROR_QUIET)
      if(dirty)
        string(APPEND commit "-dirty")
      endif()
    endif()
  endif()
  file(CONFIGURE OUTPUT ${OUT} CONTENT "#define HEADROOM_COMMIT \"@commit@\"\n" @ONLY)
else()
  set(commit_header ${PROJECT_BINARY_DIR}/generated/headroom_commit.h)
  add_custom_target(headroom_commit
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DOUT=${commit_header}
            -P ${CMAKE_CURRENT_LIST_FILE}
    BYPRODUCTS ${commit_header}
    COMMENT "")
endif()
