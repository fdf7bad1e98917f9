#!/usr/bin/env bash
# The instructions of kernels/cuda/hopper.cuh compile for sm_90a without spills, stack frames or
# serialized wgmma, and become the matrix instructions they should; so do the attention kernels of this
# build, whose spills and stack frames cmake/HeadroomCuda.cmake refuses. Skipped without nvcc; the SASS is
# read where cuobjdump and nvdisasm are found (pip install nvidia-cuda-cuobjdump
# nvidia-cuda-nvdisasm, or a full toolkit).
#
# From ctest: HEADROOM_SOURCE, HEADROOM_BUILD.
set -euo pipefail

for folder in "${CUDA_HOME:-}/bin" "${CUDA_PATH:-}/bin" /usr/local/cuda/bin \
    "$HEADROOM_SOURCE"/build/venv/lib/python3*/site-packages/nvidia/cu13/bin; do
    [ ! -d "$folder" ] || PATH=$PATH:$folder
done
command -v nvcc >/dev/null || { echo "SKIP: no nvcc" && exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$HEADROOM_SOURCE"
nvcc -std=c++17 -Ikernels/cuda -Itests/hopper_emulator -gencode=arch=compute_90a,code=sm_90a \
    -Xptxas -v -cubin -o "$work/instructions.cubin" tests/cuda/hopper_instructions.cu \
    2>"$work/ptxas" || { cat "$work/ptxas" && exit 1; }

functions=$(grep -c 'Compiling entry function' "$work/ptxas")
clean=$(grep -c ' 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads' "$work/ptxas")
if [ "$functions" -ne 19 ] || [ "$clean" -ne "$functions" ] || grep -qE 'serialized|injected' "$work/ptxas"; then
    cat "$work/ptxas"
    echo "FAIL: $clean of $functions kernels (19 expected) without spills and stack frame" >&2
    exit 1
fi

# A build refuses kernels that ptxas only informs about.
if sh cmake/nvcc_guard.sh nvcc -std=c++17 -Ikernels/cuda -gencode=arch=compute_90a,code=sm_90a -cubin \
    -o "$work/serialized.cubin" tests/cuda/hopper_serialized.cu 2>"$work/guard" ||
    ! grep -q 'serialized due to' "$work/guard"; then
    cat "$work/guard"
    echo "FAIL: cmake/nvcc_guard.sh lets serialized wgmma pass" >&2
    exit 1
fi

if ! command -v cuobjdump >/dev/null || ! command -v nvdisasm >/dev/null; then
    echo "no cuobjdump and nvdisasm: the SASS was not read"
    exit 0
fi
cuobjdump -sass "$work/instructions.cubin" >"$work/sass"
failed=0
# expect COUNT PATTERN: at least so many instructions.
expect() {
    local found
    found=$(grep -cE "$2" "$work/sass" || true)
    if [ "$found" -lt "$1" ]; then
        echo "FAIL: $found of $1 instructions $2" >&2
        failed=1
    fi
}
for n in 32 64 96 128 160 192 224 256; do
    expect 2 "QGMMA\.64x${n}x32\.F32\.E4M3\.E4M3"
    expect 2 "HGMMA\.64x${n}x16\.F32\.BF16"
    expect 2 "IGMMA\.64x${n}x32\.S8\.S8"
    expect 2 "IGMMA\.64x${n}x32\.U8\.S8"
done
expect 4 'UTMALDG\.2D'
expect 1 'UTMALDG\.3D'
expect 1 'UTMALDG\.4D'
expect 2 'UTMASTG\.2D'
expect 1 'UBLKCP'
expect 2 'USETMAXREG'
expect 1 'SYNCS\.PHASECHK'
expect 1 'LDSM\.16\.MT88\.4'
expect 1 'STSM\.16\.M88\.4'
expect 1 'MUFU\.EX2'
expect 1 'HADD2'
expect 1 'HMMA\.16816\.F32'
# Shared memory is addressed as such, never through the generic window.
if grep -E '\b(LD|ST)\.E' "$work/sass" | grep -vq 'desc\['; then
    echo "FAIL: generic loads or stores" >&2
    failed=1
fi

# attention RECIPE TYPES OTHER: of the recipe's kernel, of which the build has one an
# instantiation (head_dim 64, 128, 256, with softcap and without), every function has instructions of
# each of the TYPES and none that match OTHER.
attention() {
    local object=$HEADROOM_BUILD/CMakeFiles/headroom_cuda_objects.dir/kernels/cuda/attention_$1_sm90.cu.o
    if [ ! -e "$object" ]; then
        echo "no $object: this build has no CUDA kernels to read"
        return
    fi
    cuobjdump -sass "$object" >"$work/sass"
    local count type
    count=$(grep -c 'Function : .*attention_kernel' "$work/sass" || true)
    if [ "$count" -ne 6 ]; then
        echo "FAIL: $count attention kernels in $1, 6 expected" >&2
        failed=1
    fi
    for type in $2; do
        count=$(awk -v type="$type" '
            /Function :/ { here = /attention_kernel/; seen = 0 }
            here && !seen && index($0, type) && index($0, "GMMA.64x") { seen = 1; found++ }
            END { print found + 0 }' "$work/sass")
        if [ "$count" -ne 6 ]; then
            echo "FAIL: $count of 6 kernels of $1 have $type" >&2
            failed=1
        fi
    done
    grep -E 'GMMA\.64x' "$work/sass" >"$work/matrix" || true
    if grep -qE "$3" "$work/matrix"; then
        echo "FAIL: a kernel of $1 has matrix instructions $3" >&2
        failed=1
    fi
}
attention fp8 F32.E4M3.E4M3 '[IH]GMMA'
attention int8 'S8.S8 U8.S8' '[QH]GMMA'
attention int8_fp8 'S8.S8 F32.E4M3.E4M3' 'HGMMA|U8'
attention bf16 F32.BF16 '[QI]GMMA'
exit $failed
