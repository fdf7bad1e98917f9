#!/usr/bin/env bash
# Installs the build into an empty prefix, moves it, and builds a consumer outside the tree in four
# ways: find_package and pkg-config, each shared and static. Every consumer must run.
#
# From ctest: HEADROOM_BUILD, HEADROOM_SOURCE, CMAKE, CC.
set -euo pipefail

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
recording=$HEADROOM_SOURCE/data/minilm.safetensors

# check PROGRAM: runs it and looks at what it prints.
check() {
    local printed
    printed=$(LD_LIBRARY_PATH=$libdir:${LD_LIBRARY_PATH:-} "$1" "$recording")
    if [ "$printed" != "headroom $version: 6 layers" ]; then
        echo "FAIL: $1 printed '$printed'" >&2
        exit 1
    fi
    echo "ok: $(basename "$1")"
}

# uses_shared PROGRAM: whether it loads libheadroom.so
uses_shared() { readelf -d "$1" | grep -q 'NEEDED.*libheadroom\.so'; }

# Nothing may depend on where it was installed first.
"$CMAKE" --install "$HEADROOM_BUILD" --prefix "$scratch/first" >"$scratch/install.log"
prefix=$scratch/moved
mv "$scratch/first" "$prefix"
libdir=$(dirname "$(find "$prefix" -name libheadroom.a)")
version=$(sed -n 's/^#define HR_VERSION_[A-Z]* *\([0-9]*\)$/\1/p' \
    "$prefix/include/headroom/status.h" | paste -sd.)
soname=$(readelf -d "$libdir/libheadroom.so" | sed -n 's/.*soname: \[\(.*\)\]/\1/p')
[ "$soname" = "libheadroom.so.${version%.*}" ] || { echo "FAIL: soname is $soname" >&2; exit 1; }
[ -f "$libdir/libheadroom.so.$version" ] || { echo "FAIL: no libheadroom.so.$version" >&2; exit 1; }
grep -q "^Version: $version\$" "$libdir/pkgconfig/headroom.pc"
for file in include/headroom/headroom.h share/headroom/report.schema.json; do
    [ -f "$prefix/$file" ] || { echo "FAIL: $file is not installed" >&2; exit 1; }
done
if [ -n "$HEADROOM_CLI" ]; then
    "$prefix/bin/headroom" --version >/dev/null
    echo "ok: installed headroom"
fi

"$CMAKE" -S "$HEADROOM_SOURCE/tests/consumer" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_C_COMPILER="$CC" >"$scratch/configure.log" || { cat "$scratch/configure.log"; exit 1; }
"$CMAKE" --build "$scratch/cmake" >"$scratch/build.log" || { cat "$scratch/build.log"; exit 1; }
check "$scratch/cmake/consumer_shared"
check "$scratch/cmake/consumer_static"
uses_shared "$scratch/cmake/consumer_shared"
if uses_shared "$scratch/cmake/consumer_static"; then
    echo "FAIL: consumer_static loads the shared library" >&2
    exit 1
fi

# Flags are words to be split.
export PKG_CONFIG_PATH=$libdir/pkgconfig
source=$HEADROOM_SOURCE/tests/consumer/consumer.c
# shellcheck disable=SC2046
"$CC" "$source" $(pkg-config --cflags --libs headroom) -o "$scratch/pkgconfig_shared"
check "$scratch/pkgconfig_shared"
# The linker prefers a shared library, so the static one is tried where there is no other.
rm "$libdir"/libheadroom.so*
# shellcheck disable=SC2046
"$CC" "$source" $(pkg-config --static --cflags --libs headroom) -o "$scratch/pkgconfig_static"
check "$scratch/pkgconfig_static"
