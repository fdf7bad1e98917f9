#!/usr/bin/env bash
# Builds, checks and measures Headroom on a machine with a Hopper GPU that reaches no network.
#
#   bench/gpu.sh pack [FOLDER]     on a machine with network (Debian or Ubuntu, x86-64, nvcc): collects
#                                  into FOLDER (default build/gpu-bundle) what the other lacks: the
#                                  libraries Headroom and its tests need, Python wheels of peers, and
#                                  a build of this tree
#   bench/gpu.sh [OPTION...]       on the GPU machine, with that folder beside the tree
#
#   --stages LIST    of build,check,bench,ncu,sanitize, which is the default
#   --bundle FOLDER  what pack made (default build/gpu-bundle)
#   --out FOLDER     where gpu.json, ncu.json, audit.json, table.txt and logs.tar.gz go (default $OUT,
#                    else bench/results)
#   --quick          fewer shapes and repeats
#
# Every stage has its own limit and all together end within 9 minutes; one that fails is reported and
# the others still run. Exits 1 if any stage failed. bench writes gpu.json anew after every case, so
# that one cut short still has a table. The table comes last.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set -euo/p' "$0" | sed '$d;s/^# \{0,1\}//'
}

# ---- Packing ---------------------------------------------------------------------------------------

# A build is for one state of the sources: their names and contents.
source_hash() {
    find CMakeLists.txt cmake include quant kernels calibration tools tests bench -type f \
        ! -name '*.pyc' ! -path 'bench/results/*' -print0 | sort -z | xargs -0 sha256sum |
        sha256sum | cut -d' ' -f1
}

debian_packages=(libjansson4 libjansson-dev libxxhash0 libxxhash-dev libcriterion3 libcriterion-dev
    libnanomsg5 libgit2-1.5 libhttp-parser2.9 libmbedtls14 libmbedx509-1 libmbedcrypto7 libssh2-1
    libpcre2-8-0 libffi8 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2
    libkeyutils1 libssl3 zlib1g pkgconf-bin libpkgconf3)
# The last release of cuDNN's frontend before it needed CUTLASS, and of SageAttention without CUDA C++.
wheels=(nvidia-cudnn-frontend==1.16.0 sageattention==1.0.6)

pack() {
    local bundle=$1 packages wheel package hash
    mkdir -p "$bundle"
    rm -rf "$bundle/root" "$bundle/wheels" "$bundle/build"
    packages=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder's name as it is now
    trap "rm -rf '$packages'" EXIT
    for package in "${debian_packages[@]}"; do
        (cd "$packages" && apt-get -qq download "$package:amd64" 2>/dev/null) ||
            echo "not packed: $package has no Debian package here"
    done
    for package in "$packages"/*.deb; do dpkg -x "$package" "$bundle/root"; done
    rm -rf "$bundle/root/usr/share/doc" "$bundle/root/usr/share/man" "$bundle/root/etc"
    mkdir -p "$bundle/wheels"
    for wheel in "${wheels[@]}"; do
        python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
            --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
            -d "$bundle/wheels" "$wheel"
    done
    hash=$(source_hash)
    build_tree build/gpu
    [ "$hash" = "$(source_hash)" ] || { echo "gpu.sh: sources changed during the build" >&2 && return 1; }
    collect build/gpu "$bundle/build"
    strip --strip-debug "$bundle"/build/* 2>/dev/null || true
    echo "$hash" >"$bundle/build/sources"
    du -sh "$bundle"
}

# ---- Stages ----------------------------------------------------------------------------------------

export test_programs="check_kernels check_device test_device" # a list that stages inherit

# build_tree FOLDER: what the stages run.
build_tree() {
    cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHEADROOM_CUDA=ON \
        -DHEADROOM_WERROR=ON -DHEADROOM_BUILD_TESTS=ON >"$1.configure.log" 2>&1 ||
        { tail -20 "$1.configure.log" && return 1; }
    # shellcheck disable=SC2086 # a list
    cmake --build "$1" --target headroom_cli headroom_shared headroom_gpu_driver $test_programs
}

# collect FROM TO: what the stages run, in one folder.
collect() {
    local program
    mkdir -p "$2"
    cp -a "$1"/libheadroom.so* "$1/libheadroom_gpu_driver.so" "$1/headroom" "$2/"
    for program in $test_programs; do cp -a "$1/tests/$program" "$2/"; done
}

# The bundle's build if it is of these sources, else one made here against the bundle's libraries.
stage_build() {
    mkdir -p build
    if [ -f "$bundle/build/sources" ] && [ "$(cat "$bundle/build/sources")" = "$(source_hash)" ]; then
        rm -rf build/gpu-run
        cp -a "$bundle/build" build/gpu-run
        echo "the bundle's build is of these sources"
    else
        export PKG_CONFIG=$root/bin/pkgconf PKG_CONFIG_SYSROOT_DIR=$bundle/root
        export PKG_CONFIG_LIBDIR=$root/lib/x86_64-linux-gnu/pkgconfig:$root/share/pkgconfig
        [ -x "$PKG_CONFIG" ] || unset PKG_CONFIG PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR
        build_tree build/gpu
        collect build/gpu build/gpu-run
    fi
    # What libheadroom itself needs; the tests' libraries stay out of python's and the profilers' way.
    for library in jansson xxhash; do
        compgen -G "$root/lib/x86_64-linux-gnu/lib$library.so.*" >/dev/null || continue
        cp -a "$root/lib/x86_64-linux-gnu/lib$library.so."* build/gpu-run/
    done
    build/gpu-run/headroom kernels | grep sm90
}

# run_test SECONDS PROGRAM: a test program, with the libraries that tests need.
run_test() {
    LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$root/lib/x86_64-linux-gnu:$bundle/root/lib/x86_64-linux-gnu \
        timeout --kill-after=5 "$1" "build/gpu-run/$2"
}

# cuBLASLt for the audit's baseline: a toolkit's, or the one that torch's wheels brought along.
find_cublaslt() {
    python3 - <<'PYTHON'
import glob, sys
patterns = ["/usr/local/cuda/lib64"] + [f"{folder}/nvidia/*/lib" for folder in sys.path if folder]
found = [path for pattern in patterns for path in glob.glob(f"{pattern}/libcublasLt.so.13")]
print(*found[:1])
PYTHON
}

# An audit on the GPU: the FP32 reference must be right, and so must cuBLASLt's baseline if it ran.
check_audit() {
    local recording=$logs/audit.safetensors library
    library=$(find_cublaslt)
    [ -z "$library" ] || export HEADROOM_CUBLASLT=$library
    build/gpu-run/headroom synth gaussian --heads 4 --head-dim 128 --tokens 2048 -o "$recording" &&
        build/gpu-run/headroom audit "$recording" --device cuda -o "$logs/audit" &&
        cp "$logs/audit/report.json" "$out/audit.json" && rm "$recording" &&
        python3 - "$out/audit.json" <<'PYTHON'
import json, sys
limits = {"fp32-reference": 1e-4, "cublaslt-fp8": 0.1}
for row in json.load(open(sys.argv[1]))["baselines"]:
    limit = limits[row["id"]]
    if row["skipped"] is None and not row["total"]["rel_l2"] <= limit:
        sys.exit(f"{row['id']}: relative L2 {row['total']['rel_l2']}, at most {limit} expected")
PYTHON
}

# Recipes by themselves: an error of one kernel is an error of all later calls of its process.
stage_check() {
    local failed=0 recipe
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true
    export HEADROOM_EXPECT_ISA=sm90 HEADROOM_SOURCE=$PWD
    [ -z "$quick" ] || export HEADROOM_QUICK=1
    run_test 20 test_device || failed=1
    for recipe in fp8 int8 int8_fp8 bf16; do
        HEADROOM_FILTER=attention_${recipe}_sm90 run_test 40 check_kernels || failed=1
    done
    run_test 40 check_device || failed=1
    check_audit || failed=1
    return $failed
}

# A check with the oracle and one timed run of every kernel, under each tool.
stage_sanitize() {
    local tool failed=0
    for tool in memcheck racecheck synccheck; do
        echo "-- $tool"
        timeout --kill-after=5 42 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
            build/gpu-run/headroom bench --device cuda --head-dim 64,128,256 --seqlen-q 200 \
            --heads 2 --repeats 1 >"$logs/$tool.log" 2>&1 || failed=1
        grep -E 'SUMMARY|=========.*(Error|hazard|Invalid)' "$logs/$tool.log" | head -5 || true
    done
    return $failed
}

stage_bench() {
    local wheel_target=/tmp/headroom-gpu-wheels arguments=()
    if compgen -G "$bundle/wheels/*.whl" >/dev/null; then
        python3 -m pip install -q --no-index --no-deps --no-compile --upgrade \
            --target "$wheel_target" "$bundle"/wheels/*.whl
        export PYTHONPATH=$wheel_target${PYTHONPATH:+:$PYTHONPATH}
    fi
    [ -z "$quick" ] || arguments=(--head-dim 128 --seqlen 16384 --repeats 7)
    python3 bench/gpu_peers.py --library build/gpu-run/libheadroom_gpu_driver.so \
        --out "$out/gpu.json" --seconds "$((limit_of_bench - 45))" "${arguments[@]}" >/dev/null
}

# Sections rather than metrics: ncu refuses to run for one name that it does not know.
# The first ten launches of headroom bench are of the small problem that it checks.
stage_ncu() {
    local recipe
    for recipe in fp8 int8 int8_fp8; do
        ncu --clock-control none --csv --page raw --section SpeedOfLight --section LaunchStats \
            --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis \
            --section SchedulerStats --section WarpStateStats --kernel-name regex:attention \
            --launch-skip 12 --launch-count 1 build/gpu-run/headroom bench --device cuda \
            --filter "attention_${recipe}_sm90/*" --head-dim 128 --seqlen-q 4096 --heads 16 \
            --mask full --repeats 1 >"$logs/ncu-$recipe.csv"
    done
    python3 bench/gpu_ncu.py "$logs"/ncu-*.csv "$out/ncu.json"
}

declare -A limits=([build]=230 [check]=150 [bench]=200 [ncu]=60 [sanitize]=130)
limit_of_bench=${limits[bench]}
whole=540

# run_stage NAME: within its limit and what is left of the whole, with a log of its own.
run_stage() {
    local name=$1 begin=$SECONDS limit left outcome
    left=$((whole - SECONDS))
    limit=${limits[$name]}
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        summary+=("SKIPPED      -  $name: no time left")
        failed=1
        return
    fi
    outcome=ok
    printf '\n=== %s\n' "$name"
    timeout --kill-after=5 "$limit" bash -euo pipefail -c "stage_$name" >"$logs/$name.log" 2>&1 ||
        outcome=FAILED
    tail -25 "$logs/$name.log"
    tar -C "$logs" -czf "$out/logs.tar.gz" . || true
    [ $outcome = ok ] || failed=1
    summary+=("$(printf '%-7s %4d s  %s' $outcome $((SECONDS - begin)) "$name")")
}

# ---- Arguments -------------------------------------------------------------------------------------

stages=build,check,bench,ncu,sanitize
bundle=build/gpu-bundle
out=${OUT:-bench/results}
quick=
if [ "${1:-}" = pack ]; then
    [ $# -le 2 ] || { usage >&2 && exit 2; }
    pack "${2:-$bundle}"
    exit
fi
while [ $# -gt 0 ]; do
    case $1 in
    --stages | --bundle | --out)
        [ $# -ge 2 ] || { echo "gpu.sh: $1 needs a value" >&2 && exit 2; }
        case $1 in
        --stages) stages=$2 ;;
        --bundle) bundle=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    --quick) quick=1 ;;
    --help) usage && exit ;;
    *) echo "gpu.sh: unknown option \"$1\"; --help lists them" >&2 && exit 2 ;;
    esac
    shift
done
IFS=, read -ra wanted <<<"$stages"
for stage in "${wanted[@]}"; do
    [ -n "${limits[$stage]:-}" ] ||
        { echo "gpu.sh: no stage \"$stage\"; stages are build,check,bench,ncu,sanitize" >&2 && exit 2; }
done

logs=$PWD/build/gpu-logs
rm -rf "$logs"
mkdir -p "$out" "$logs"
bundle=$(realpath -m "$bundle")
out=$(realpath "$out")
root=$bundle/root/usr
PATH=$PATH:/usr/local/cuda/bin
export LD_LIBRARY_PATH=$PWD/build/gpu-run${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export bundle out logs root quick limit_of_bench PATH
export -f source_hash build_tree collect stage_build run_test find_cublaslt check_audit stage_check stage_sanitize stage_bench stage_ncu

summary=()
failed=0
rm -f "$out/gpu.json"
for stage in "${wanted[@]}"; do run_stage "$stage"; done

printf '\n=== summary, %d s\n' $SECONDS
printf '%s\n' "${summary[@]}"
[ ! -f "$out/gpu.json" ] || python3 bench/gpu_peers.py --table "$out/gpu.json" | tee "$out/table.txt"
exit $failed
