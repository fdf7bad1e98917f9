# Joins tools/report/page.html with the files it names between at signs (@style.css@, ...) and writes
# what stands before and after the place of the report, @report.json@, as two C strings. Run at build
# time: cmake -DSOURCE=<tools/report> -DPARTS=<files> -DOUTPUT=<file.c> -P this.
#
# Text is handled as hexadecimal, two digits a byte, because CMake strings treat ; [ ] specially.
file(READ "${SOURCE}/page.html" page HEX)
foreach(part ${PARTS})
  file(READ "${SOURCE}/${part}" text HEX)
  string(HEX "@${part}@" mark)
  string(FIND "${page}" "${mark}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "page.html has no mark @${part}@")
  endif()
  string(REPLACE "${mark}" "${text}" page "${page}")
endforeach()

string(HEX "@report.json@" mark)
string(FIND "${page}" "${mark}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "page.html has no mark @report.json@")
endif()
string(LENGTH "${mark}" mark_length)
math(EXPR after "${at} + ${mark_length}")
string(SUBSTRING "${page}" 0 ${at} head)
string(SUBSTRING "${page}" ${after} -1 tail)

set(source "/* Made from tools/report by cmake/EmbedReportPage.cmake. */
#include \"report_page_template.h\"
")
foreach(half head tail)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${${half}}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND source "
const char report_page_${half}[] = {
${bytes}0};
")
endforeach()
file(WRITE "${OUTPUT}" "${source}")
