#!/usr/bin/env bash
# Fetches and builds what bench/peers/run.py compares Headroom with. Nothing of it is committed:
# wheels go to build/venv-peers, sources and builds to build/peers.
#
#     bench/peers/setup.sh [PEER[=SOURCE]]...
#
# PEER is ggml, ik_llama.cpp, onednn, torch, openvino or onnxruntime; without arguments all of them.
# SOURCE, for the first two, is a folder with the sources or a git URL (default: GitHub);
# VERSION_ggml and VERSION_ik_llama_cpp name the version of a folder that is no git checkout. The
# others are wheels from PyPI (PIP_INDEX_URL changes where from); torch is there with CUDA only,
# which its CPU kernels do not use. JOBS is how many compilers run at once (default 2).
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=build/venv-peers
jobs=${JOBS:-2}
peers=(ggml ik_llama.cpp onednn torch openvino onnxruntime)

wheels() { "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }

# source_of NAME SOURCE URL: prints the folder that holds the sources, cloned if need be.
source_of() {
    local folder from=${2:-$3}
    for folder in "$from" "$from/ggml"; do
        [ ! -f "$folder/CMakeLists.txt" ] || { realpath "$from" && return; }
    done
    folder=build/peers/src/$1
    [ -d "$folder" ] || git clone --quiet --depth 1 "$from" "$folder" >&2
    realpath "$folder"
}

# version_of NAME FOLDER
version_of() {
    local named=VERSION_${1//./_}
    if [ -n "${!named:-}" ]; then
        echo "$1 ${!named}"
    else
        echo "$1 $(git -C "$2" rev-parse --short=12 HEAD 2>/dev/null || echo 'of unknown version')"
    fi
}

# driver NAME PEER FOLDER VERSION
driver() {
    cmake -S bench/peers -B "build/peers/$1" -G Ninja -DPEER="$2" -DPEER_SOURCE="$3" \
        -DPEER_VERSION="$4" >/dev/null
    cmake --build "build/peers/$1" --target "peer_$2" -j "$jobs"
}

setup() {
    local name=${1%%=*} source='' folder
    case $1 in *=*) source=${1#*=} ;; esac
    echo "== $name"
    case $name in
        ggml)
            folder=$(source_of ggml "$source" https://github.com/ggml-org/ggml)
            driver ggml ggml "$folder" "$(version_of ggml "$folder")"
            ;;
        ik_llama.cpp)
            folder=$(source_of ik_llama.cpp "$source" https://github.com/ikawrakow/ik_llama.cpp)
            [ ! -d "$folder/ggml" ] || folder=$folder/ggml
            driver ik_llama.cpp ggml "$folder" "$(version_of ik_llama.cpp "$folder")"
            ;;
        onednn)
            wheels onednn-devel
            driver onednn onednn "$(realpath "$venv")" unused
            ;;
        torch) wheels torch ;;
        openvino) wheels openvino ;;
        onnxruntime) wheels onnxruntime onnx ;;
        *)
            echo "setup: no peer \"$name\"; there are ${peers[*]}" >&2
            exit 2
            ;;
    esac
}

case ${1:-} in
    -h | --help)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac
for command in python3 git cmake ninja c++; do
    command -v "$command" >/dev/null || { echo "setup: needs $command" >&2 && exit 1; }
done
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
wheels numpy matplotlib jsonschema
[ $# -gt 0 ] || set -- "${peers[@]}"
for peer in "$@"; do setup "$peer"; done
[ -d build/release ] || cmake --preset release -DHEADROOM_BUILD_TESTS=OFF
cmake --build build/release --target peer_headroom -j "$jobs"
echo "next: $venv/bin/python bench/peers/run.py prepare, then measure"
