#!/bin/sh
# systemd_machine.sh: proves the unit, fstab's line and the descriptor store on a Debian 12 that a real systemd runs.
#
# The machine is a folder under .build/systemd, as bare_machine.sh makes one; its systemd is the first process of
# namespaces of its own. The last commit is installed there with `make install`; then tests/systemd_inside.sh runs.
# Needs root. Everything ends with this script.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/.build/systemd
machine=$build/machine
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

case ${SYSTEMD_STAGE:-} in
boot) # the first process of the new namespaces: becomes systemd
    mount --make-rprivate /
    mount --bind "$machine" "$machine"
    mount -t proc proc "$machine/proc"
    mount -t sysfs sysfs "$machine/sys"
    mount --rbind /dev "$machine/dev"
    mount -t tmpfs tmpfs "$machine/run"
    mount -t tmpfs tmpfs "$machine/tmp"
    if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mount -t cgroup2 cgroup2 "$machine/sys/fs/cgroup"
    else
        mount -t tmpfs tmpfs "$machine/sys/fs/cgroup"
        mkdir "$machine/sys/fs/cgroup/systemd" "$machine/sys/fs/cgroup/unified" "$machine/sys/fs/cgroup/devices"
        mount -t cgroup2 cgroup2 "$machine/sys/fs/cgroup/unified"
        mount -t cgroup -o none,name=systemd,xattr systemd "$machine/sys/fs/cgroup/systemd"
        mount -t cgroup -o devices devices "$machine/sys/fs/cgroup/devices"
    fi
    hostname vdiskfs-test
    cd "$machine"
    mkdir -p outside
    pivot_root . outside
    umount -l outside
    exec env -i container=other TERM=dumb /lib/systemd/systemd --log-target=journal
    ;;
esac

. "$root/tests/debian_machine.sh"
make_machine "$machine" "$build/debian.tar" make,python3,git,ca-certificates,systemd,systemd-sysv,dbus,procps
git clone -q "$root" "$machine/root/vdiskfs"
unshare --mount --propagation private sh -c '
    mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && shift && exec chroot "$@"' - "$machine" "$machine" \
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    make --no-print-directory -C /root/vdiskfs install-run install >"$build/install.log" 2>&1 || {
    tail -n 20 "$build/install.log" >&2
    exit 1
}

SYSTEMD_STAGE=boot setsid unshare --mount --pid --cgroup --uts --ipc --fork --kill-child "$0" >"$build/systemd.log" 2>&1 &
outer=$!
trap 'kill -9 $outer 2>/dev/null || true; wait $outer 2>/dev/null || true; rm -rf --one-file-system "$machine"' EXIT
first=
for _ in $(seq 100); do
    first=$(pgrep -P $outer || true)
    if [ -n "$first" ] && nsenter -t "$first" -a systemctl is-system-running --wait >/dev/null 2>&1; then break; fi
    sleep 0.2
done
nsenter -t "$first" -a systemctl is-system-running || [ -n "$first" ]
nsenter -t "$first" -a env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    bash /root/vdiskfs/tests/systemd_inside.sh
