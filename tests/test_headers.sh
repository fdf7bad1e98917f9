#!/usr/bin/env bash
# Every public header compiles by itself, as C11, C17 and C++17, without a warning.
#
# From ctest: HEADROOM_SOURCE, CC, CXX.
set -euo pipefail

cd "$HEADROOM_SOURCE"
failed=0
count=0
for header in include/headroom/*.h; do
    for language in c:c11 c:c17 c++:c++17; do
        compiler=$CC
        [ "${language%%:*}" = c ] || compiler=$CXX
        if ! echo "#include \"${header#include/}\"" |
            "$compiler" -x "${language%%:*}" -std="${language#*:}" -Wall -Wextra -Werror -pedantic \
                -fsyntax-only -Iinclude -; then
            echo "FAIL: $header as ${language#*:}" >&2
            failed=1
        fi
        count=$((count + 1))
    done
done
echo "$count compilations"
[ "$count" -ge 30 ] || failed=1
exit $failed
