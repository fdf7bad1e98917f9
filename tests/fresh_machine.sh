#!/usr/bin/env bash
# The README's commands on a machine that has only Debian's base system, git and make: debootstraps
# one into a temporary folder, clones the last commit into it and runs `make demo` and `make test`
# there, as root, in a chroot with its own mounts and processes. Needs root, debootstrap, git and
# about 3 GB; takes 5 to 10 minutes. Not part of ctest.
#
#     sudo tests/fresh_machine.sh [SUITE [MIRROR]]      default: bookworm, deb.debian.org
#
# HEADROOM_KEEP=1 leaves the folder there and says where it is.
set -euo pipefail

suite=${1:-bookworm}
mirror=${2:-http://deb.debian.org/debian}
source=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" = 0 ] || { echo "fresh_machine: must be run as root" >&2; exit 1; }
for command in debootstrap git unshare; do
    command -v $command >/dev/null || { echo "fresh_machine: $command is missing" >&2; exit 1; }
done

root=$(mktemp -d /var/tmp/headroom-fresh.XXXXXX)
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
git -c safe.directory='*' clone -q --no-hardlinks "$source" "$root/root/headroom"

# The mounts live in a namespace of their own and go with its last process.
unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount -t tmpfs tmpfs "$1/dev/shm"
    exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        HEADROOM_EXPECT="${HEADROOM_EXPECT:-}" bash -euo pipefail -c "
            cd /root/headroom
            for target in demo test demo; do
                echo \"=== make \$target\"
                SECONDS=0
                make \$target
                echo \"=== make \$target: \$SECONDS s\"
            done
            test -s build/demo/report.json
            test -s build/demo/report.html"
' namespace "$root"
echo "=== passed"
