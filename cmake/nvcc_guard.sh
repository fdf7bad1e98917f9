#!/bin/sh
# nvcc_guard.sh COMMAND...: runs nvcc, and fails too where ptxas only informs of what ruins a kernel:
# wgmma made to wait for each other, fences and waits put in, setmaxnreg ignored (C7508, C7510 ...).
log=$(mktemp) || exit
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?
cat "$log" >&2
if grep -qE '\(C75[0-9]{2}\)|Potential Performance Loss' "$log"; then
    echo "nvcc_guard.sh: ptxas changed what the kernel says (above)" >&2
    [ $status -ne 0 ] || status=1
fi
exit $status
