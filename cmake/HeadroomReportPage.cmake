# headroom_report_page: report_page_render and the HTML template it fills, embedded at build time.
set(report_parts style.css model.js draw.js plot.js maps.js tables.js page.js)
set(report_source "${PROJECT_SOURCE_DIR}/tools/report")
set(report_template "${PROJECT_BINARY_DIR}/report_page_template.c")
list(TRANSFORM report_parts PREPEND "${report_source}/" OUTPUT_VARIABLE report_files)

add_custom_command(OUTPUT "${report_template}"
  COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${report_source}" "-DOUTPUT=${report_template}"
          "-DPARTS=${report_parts}" -P "${PROJECT_SOURCE_DIR}/cmake/EmbedReportPage.cmake"
  DEPENDS "${report_source}/page.html" ${report_files}
          "${PROJECT_SOURCE_DIR}/cmake/EmbedReportPage.cmake"
  COMMENT "Embedding the report page"
  VERBATIM)

add_library(headroom_report_page OBJECT "${report_source}/report_page.c" "${report_template}")
target_include_directories(headroom_report_page PUBLIC "${report_source}")
target_link_libraries(headroom_report_page PRIVATE headroom_flags)
