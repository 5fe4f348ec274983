"""What mount(8) runs: its arguments and fstab's understood, and a real mount through it."""

import pathlib
import subprocess
import sys

import pytest

from tests.mounted_pool import MountedPool, package_environment
from tools import cli
from tools.mount_helper import translate


@pytest.mark.parametrize(
    ("words", "command", "really"),
    [
        ("/srv/pool /mnt", "mount -- /srv/pool /mnt", True),
        (
            "/srv/pool /mnt -o rw,noatime,node=here,state=/state,x-systemd.automount,_netdev,user=joe",
            "mount --node here --state /state -o rw,noatime,_netdev -- /srv/pool /mnt",
            True,
        ),
        ("-sn /srv/pool /mnt -t vdiskfs", "mount -- /srv/pool /mnt", True),
        ("/srv/pool /mnt -r", "mount -o ro -- /srv/pool /mnt", True),
        ("/srv/pool /mnt -f -v", "mount -- /srv/pool /mnt", False),
    ],
)
def test_the_mount_helper_understands_mount_and_fstab(words: str, command: str, really: bool) -> None:
    assert translate(words.split()) == (command.split(), really)
    cli.build_parser().parse_args(command.split())


@pytest.mark.parametrize(
    "words", ["/srv/pool", "/srv/pool /mnt /more", "/srv/pool /mnt -o", "/srv/pool /mnt --x"]
)
def test_the_mount_helper_refuses_what_it_does_not_understand(words: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        translate(words.split())


@pytest.mark.root
def test_mount_and_umount_work_through_mount_8(unmounted: MountedPool, tmp_path: pathlib.Path) -> None:
    helper = tmp_path / "mount.vdiskfs"
    run = "import sys; from tools.mount_helper import main; sys.exit(main(sys.argv[1:]))"
    helper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{run}" "$@"\n')
    helper.chmod(0o755)
    words = [str(unmounted.pool), str(unmounted.mountpoint), "-o", f"rw,node=here,state={unmounted.state}"]
    done = subprocess.run([helper, *words], env=package_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unmounted.create("disk", "1M")
    again = subprocess.run([helper, *words], env=package_environment(), capture_output=True, text=True)
    assert again.returncode == 32
    assert "busy" in again.stderr
    unmounted.umount()
