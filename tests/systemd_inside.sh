#!/bin/bash
# systemd_inside.sh: what systemd_machine.sh runs on its machine; says what it does, ends with 1 if anything is not as it should be.
set -eu
unit=vdiskfs@main
writer=/tmp/writer.py
fail() {
    echo "FAILED: $*" >&2
    journalctl -u $unit --no-pager -o cat | tail -n 40 >&2
    exit 1
}
keeper() { systemctl show -p MainPID --value $unit; }
served_again() { # once the mount answers
    for _ in $(seq 300); do
        if systemctl is-active -q $unit && timeout 1 stat -f /mnt/vdisks >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    fail "$1"
}

cat >$writer <<'P'
import os, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
file = os.open("/mnt/vdisks/disk", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 64 << 20)
count, last, longest = 0, time.monotonic(), 0.0
while not stopped:
    os.pwrite(file, count.to_bytes(8, "little") * 512, count % 16384 * 4096)
    os.fdatasync(file)
    count, now = count + 1, time.monotonic()
    last, longest = now, max(longest, now - last)
for number in range(max(0, count - 16384), count):
    if os.pread(file, 4096, number % 16384 * 4096) != number.to_bytes(8, "little") * 512:
        sys.exit(f"write {number} is lost")
print(f"{count} synced writes, all there; the longest pause was {longest:.2f} s")
P

vdiskfs format /srv/pool
mkdir -p /etc/vdiskfs /mnt/vdisks
printf 'POOL=/srv/pool\nMOUNTPOINT=/mnt/vdisks\n' >/etc/vdiskfs/main.conf
echo "== systemctl enable --now $unit"
systemctl enable --now $unit
systemctl status --no-pager $unit | sed -n '3p;5,6p'
python3 $writer &
writing=$!
sleep 2
echo "== kill -9 of the daemon"
kill -9 "$(pgrep -P "$(keeper)" | head -n 1)"
served_again "the mount does not answer after the daemon's death"
sleep 1
echo "== kill -9 of the keeper"
kill -9 "$(keeper)"
sleep 1
served_again "the mount does not answer after the keeper's death"
[ "$(systemctl show -p NRestarts --value $unit)" = 1 ] || fail "systemd did not start a keeper"
sleep 1
echo "== kill -9 of both"
pkill -9 -f '^/opt/vdiskfs/bin/python .*-m fusefs[.](keeper|node)'
sleep 1
served_again "the mount does not answer after the death of both"
journalctl -u $unit -o cat | grep -F 'back from systemd' || fail "nothing came back from systemd"
sleep 1
echo "== systemctl reload: the upgrade"
systemctl reload $unit
journalctl -u $unit -o cat | grep -F 'upgraded, guests waited' || fail "no upgrade"
sleep 1
kill $writing
wait $writing || fail "the writer saw an error, or a write is lost"
vdiskfs check /mnt/vdisks || fail "check"
echo "== systemctl stop, restart, and what a reboot does"
systemctl stop $unit
! grep -q /mnt/vdisks /proc/mounts || fail "still mounted"
systemctl start $unit
systemctl disable --now $unit
! grep -q /mnt/vdisks /proc/mounts || fail "still mounted"
echo "== a line of fstab"
echo '/srv/pool /mnt/vdisks vdiskfs node=here,nofail 0 0' >>/etc/fstab
systemctl daemon-reload
mount /mnt/vdisks
[ -e /mnt/vdisks/disk ] || fail "the disk is not there"
umount /mnt/vdisks
systemctl start mnt-vdisks.mount
[ -e /mnt/vdisks/disk ] || fail "the disk is not there"
systemctl stop mnt-vdisks.mount
! grep -q /mnt/vdisks /proc/mounts || fail "still mounted"
echo "all as it should be"
