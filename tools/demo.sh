#!/usr/bin/env bash
# The whole data path on one recording: calibrate, pack, run --check, audit, and a run of what it chose.
#
#     tools/demo.sh HEADROOM RECORDING FOLDER
#
# Shows each command before it runs, and at the end where the report is.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: tools/demo.sh HEADROOM RECORDING FOLDER" >&2
    exit 2
fi
headroom=$1 recording=$2 folder=$3

# step COMMAND...: shows it as one would type it, and runs it.
step() {
    local word
    printf '\n$'
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:,=%+-]+$ ]] || word=${word@Q}
        printf ' %s' "$word"
    done
    printf '\n'
    "$@"
}

mkdir -p "$folder"
step "$headroom" calibrate "$recording" -o "$folder/profile.safetensors"
step "$headroom" pack "$recording" --profile "$folder/profile.safetensors" \
    -o "$folder/packed.safetensors"
step "$headroom" run "$recording" --profile "$folder/profile.safetensors" --check \
    -o "$folder/output.safetensors"
step "$headroom" audit "$recording" --observer absmax,percentile:99.99,mse \
    --recipe 'all fp8:qk.transform=hadamard int4:kv.granularity=group16' -o "$folder"
step "$headroom" run "$recording" --choice "$folder/choice.json" --check=0.05 \
    -o "$folder/output.safetensors"
printf '\nreport: %s\n' "$folder/report.html"
