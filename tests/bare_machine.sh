#!/bin/sh
# bare_machine.sh [TARGET...]: proves that a fresh clone works on a machine with nothing but Debian 12, Python and make.
#
# debootstrap makes the machine (a folder under .build/bare, kept as a tarball for the next time); the last commit
# is cloned into it; then the two commands of the README run there, or the targets named. Needs root. The machine
# shares this one's kernel, /dev and network, and nothing else; all its mounts end with this script.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/.build/bare
machine=$build/machine
targets=${*:-demo test}
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

if [ -z "${IN_OWN_NAMESPACE:-}" ]; then
    status=0
    IN_OWN_NAMESPACE=1 unshare --mount --propagation private "$0" "$@" || status=$?
    rm -rf --one-file-system "$machine"
    exit $status
fi

. "$root/tests/debian_machine.sh"
make_machine "$machine" "$build/debian.tar" make,python3,git,ca-certificates
ln -s ../proc/self/mounts "$machine/etc/mtab" # as its first boot would have; fusermount3 looks there
mount --bind "$machine" "$machine" # so that its root is a mount, as every machine's is
mount -t proc proc "$machine/proc"
mount --rbind /sys "$machine/sys" # its control groups too
mount --rbind /dev "$machine/dev"
mount -t tmpfs tmpfs "$machine/run"
git clone -q "$root" "$machine/root/vdiskfs"
for target in $targets; do
    echo "== make $target, on the bare machine"
    chroot "$machine" env -i HOME=/root TERM="${TERM:-dumb}" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        make --no-print-directory -C /root/vdiskfs "$target"
done
