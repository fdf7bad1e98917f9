#!/usr/bin/env bash
# The README's commands on a machine that has only Debian's base system, git and make: debootstraps
# one into a temporary folder, clones the last commit into it and runs `make demo` and `make test`
# there, as root, in a chroot with its own mounts and processes. Before that a user who may not
# install anything must be told what is missing. Needs root, debootstrap, git and about 3 GB; takes 5
# to 10 minutes. Not part of ctest.
#
#     sudo tests/fresh_machine.sh [SUITE [MIRROR]]      default: bookworm, deb.debian.org
#
# HEADROOM_TARGETS=demo runs only that one. HEADROOM_KEEP=1 leaves the folder and says where it is.
# The certificates that PIP_CERT names are taken along (bullseye's CMake is old, so one comes from PyPI).
set -euo pipefail

suite=${1:-bookworm}
mirror=${2:-http://deb.debian.org/debian}
source=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" = 0 ] || { echo "fresh_machine: must be run as root" >&2; exit 1; }
for command in debootstrap git unshare; do
    command -v $command >/dev/null || { echo "fresh_machine: $command is missing" >&2; exit 1; }
done

root=$(mktemp -d /var/tmp/headroom-fresh.XXXXXX)
chmod 755 "$root"
finish() {
    if [ "${HEADROOM_KEEP:-}" = 1 ]; then
        echo "fresh_machine: left in $root"
    else
        rm -rf --one-file-system "$root"
    fi
}
trap finish EXIT

echo "=== $suite from $mirror in $root"
debootstrap --variant=minbase --include=ca-certificates,git,make "$suite" "$root" "$mirror" \
    >"$root.log" || { tail -n 20 "$root.log" >&2; exit 1; }
rm "$root.log"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/srv/certificates"
git -c safe.directory='*' clone -q --no-hardlinks "$source" "$root/srv/headroom"

# What runs inside.
cat >"$root/srv/try" <<'TRY'
set -euo pipefail
cd /srv/headroom
echo "=== make demo, as nobody"
if su nobody -s /bin/bash -c 'make demo' >/tmp/nobody 2>&1; then
    echo "FAIL: nobody could run it" >&2
    exit 1
fi
cat /tmp/nobody
grep -q 'missing packages: build-essential cmake' /tmp/nobody
for target in "$@"; do
    echo "=== make $target"
    SECONDS=0
    make "$target"
    echo "=== make $target: $SECONDS s"
done
test -s build/demo/report.json
test -s build/demo/report.html
TRY

# The mounts live in a namespace of their own and go with its last process.
# shellcheck disable=SC2016,SC2086
unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount -t tmpfs tmpfs "$1/dev/shm"
    exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        PIP_CERT=/srv/certificates HEADROOM_EXPECT="${HEADROOM_EXPECT:-}" bash /srv/try "${@:2}"
' namespace "$root" ${HEADROOM_TARGETS:-demo test}
echo "=== passed"
