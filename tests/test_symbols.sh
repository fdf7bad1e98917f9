#!/usr/bin/env bash
# The shared library exports symbols that begin with hr_ and no others; the static library defines
# none besides either, so that it clashes with nothing in the program it is linked into. (gcc makes a
# lock named .gomp_critical_user_NAME of OpenMP's named critical sections; the CUDA kernels' C++ is in
# namespaces that say sm90 or hopper, or takes arguments that do.)
#
# From ctest: HEADROOM_BUILD.
set -euo pipefail

failed=0

# check WHAT NM_ARGUMENT...: every symbol listed begins with hr_, and there are some.
check() {
    local what=$1 symbols others
    shift
    symbols=$(nm "$@" | awk 'NF >= 2 { print $NF }')
    others=$(grep -vE '^(\.gomp_critical_user_)?hr_|^_Z.*(hopper|sm90)' <<<"$symbols" || true)
    if [ -n "$others" ]; then
        echo "FAIL: $what has symbols without the prefix hr_:" $others >&2
        failed=1
    elif ! grep -qx hr_version <<<"$symbols"; then
        echo "FAIL: $what has no hr_version" >&2
        failed=1
    else
        echo "ok: $what, $(wc -l <<<"$symbols") symbols"
    fi
}

shared=$HEADROOM_BUILD/libheadroom.so
check "the shared library" -D --defined-only "$shared"
check "the static library" -g --defined-only "$HEADROOM_BUILD/libheadroom.a"

# What the headers declare, and nothing internal, is exported.
if nm -D --defined-only "$shared" | grep -qw hr_fail; then
    echo "FAIL: the shared library exports the internal hr_fail" >&2
    failed=1
fi
exit $failed
