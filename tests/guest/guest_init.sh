#!/bin/sh
# The test guest's init: finds the disk, runs /job (the test put it there), reports on the console, powers off.
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module"; done
waits=0
until [ -b /dev/vda ] || [ $waits = 100 ]; do usleep 50000; waits=$((waits + 1)); done
echo "GUEST-UP sectors=$(cat /sys/block/vda/size)"
sh /job
echo "GUEST-DONE status=$?"
sync
poweroff -f
