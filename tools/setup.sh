#!/usr/bin/env bash
# Installs what building, testing or checking Headroom needs and this machine lacks.
#
#     tools/setup.sh build    compiler, CMake 3.25 or later, Ninja, jansson, xxhash
#     tools/setup.sh test     and Criterion, Python with jsonschema, Chromium (Debian)
#     tools/setup.sh ci       and clang, its OpenMP and sanitizer runtimes, clang-format 14, a cross
#                             compiler for 64-bit Arm with qemu-user (Debian and Ubuntu)
#
# Asks for things, not for packages, so what came from elsewhere counts; nothing is downloaded when
# nothing is missing. Packages come from apt, as root or through sudo; otherwise their names are
# printed and the exit code is 1. A CMake older than 3.25 (Ubuntu 22.04) is not replaced: a newer one
# from PyPI goes to build/venv, where the Makefile looks first.
set -euo pipefail
cd "$(dirname "$0")/.."

level=${1:-}
case $level in
    build) rank=0 ;;
    test) rank=1 ;;
    ci) rank=2 ;;
    *)
        echo "usage: tools/setup.sh build|test|ci" >&2
        exit 2
        ;;
esac

has() { command -v "$1" >/dev/null 2>&1; }
# Debian's Python, for which apt installs packages; another one may come first in PATH.
python() { if [ -x /usr/bin/python3 ]; then /usr/bin/python3 "$@"; else python3 "$@"; fi; }

cmake_is_new_enough() {
    local cmake version
    for cmake in build/venv/bin/cmake cmake; do
        version=$("$cmake" --version 2>/dev/null | sed -n '1s/.* \([0-9.]*\).*/\1/p') || continue
        [ -n "$version" ] || continue
        [ "$(printf '%s\n3.25\n' "$version" | sort -V | head -n 1)" = 3.25 ] && return 0
    done
    return 1
}

# compiles COMPILER... : whether it makes a program of standard input
compiles() { "$@" -x c - -o /dev/null 2>/dev/null; }

# Prints the packages that are missing, one a line.
missing_packages() {
    { has c++ && has make && compiles cc <<<$'#include <stdio.h>\nint main(void) { return 0; }'; } ||
        echo build-essential
    cmake_is_new_enough || echo cmake
    has ninja || echo ninja-build
    has pkg-config || echo pkg-config
    pkg-config --exists 'jansson >= 2.12' 2>/dev/null || echo libjansson-dev
    pkg-config --exists 'libxxhash >= 0.8' 2>/dev/null || echo libxxhash-dev
    [ "$rank" -ge 1 ] || return 0

    pkg-config --exists 'criterion >= 2.3' 2>/dev/null || echo libcriterion-dev
    python -c 'import jsonschema' 2>/dev/null || echo python3-jsonschema
    # Ubuntu's package of that name is an installer for a snap, which containers cannot run.
    if ! has chromium && ! has chromium-browser && ! has google-chrome; then
        if grep -qs '^ID=ubuntu' /etc/os-release; then
            echo "setup: no Chromium here; the test that opens the report in it is skipped" >&2
        else
            echo chromium
        fi
    fi
    [ "$rank" -ge 2 ] || return 0

    has clang || echo clang
    has clang-format-14 || echo clang-format-14
    compiles clang -fsanitize=address <<<'int main(void) { return 0; }' || echo libclang-rt-dev
    compiles clang -fopenmp <<<$'#include <omp.h>\nint main(void) { return 0; }' || echo libomp-dev
    has aarch64-linux-gnu-gcc || echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross | tr ' ' '\n'
    has qemu-aarch64-static || echo qemu-user-static
}

# Unpacks jansson and xxhash for arm64 into build/arm64-sysroot. Installed, arm64 packages would
# take the place of the machine's own ones; here apt uses folders and lists of its own.
arm64_sysroot() {
    local root=$PWD/build/arm64-sysroot state=$PWD/build/arm64-apt
    [ -e "$root/usr/include/jansson.h" ] && [ -e "$root/usr/include/xxhash.h" ] && return 0
    has apt-get || return 0
    mkdir -p "$root" "$state/lists/partial" "$state/archives/partial"
    local options=(-q -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state"
        -o APT::Architectures::="$(dpkg --print-architecture)" -o APT::Architectures::=arm64
        -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=true)
    apt-get "${options[@]}" update
    (cd "$state/archives" && apt-get "${options[@]}" download libjansson-dev:arm64 libxxhash-dev:arm64)
    local package
    for package in "$state"/archives/*.deb; do dpkg -x "$package" "$root"; done
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

can_install() {
    has apt-get || return 1
    [ "$(id -u)" = 0 ] || { has sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; }
}

# apt_install PACKAGE...
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# A CMake from PyPI in build/venv, for systems whose own is too old.
cmake_from_pypi() {
    echo "setup: this system's CMake is older than 3.25; installing one in build/venv" >&2
    python -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    python -m venv build/venv
    build/venv/bin/pip install --quiet --disable-pip-version-check 'cmake>=3.25,<4'
}

mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ]; then
    if ! can_install; then
        echo "setup: missing packages: ${missing[*]}" >&2
        echo "setup: as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    apt_install "${missing[@]}"
    cmake_is_new_enough || cmake_from_pypi
    mapfile -t missing < <(missing_packages 2>/dev/null)
    if [ ${#missing[@]} -gt 0 ]; then
        echo "setup: still missing after installation: ${missing[*]}" >&2
        exit 1
    fi
fi
if [ "$rank" -ge 2 ]; then arm64_sysroot; fi
