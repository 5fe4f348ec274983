"""The mount table: read with its escapes, and which mount a path lies under."""

import pathlib

from fusefs import mount_table
from fusefs.mount_table import MountEntry

MOUNTINFO = b"""\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 22 0:39 / /mnt/with\\040space rw,nosuid shared:3 - fuse.vdiskfs /pool\\134x rw,user_id=1000,group_id=5
41 40 0:40 / /mnt/with\\040space/deep rw - tmpfs tmpfs rw
42 22 0:41 / /mnt/with\\040space rw - fuse.vdiskfs /second rw,user_id=0,group_id=0,allow_other
garbage
43 22 0:42 / /odd rw - proc
"""


def test_the_mount_table_is_read_with_its_escapes() -> None:
    entries = mount_table.parse_mountinfo(MOUNTINFO)
    assert [entry.mountpoint for entry in entries] == [
        "/",
        "/mnt/with space",
        "/mnt/with space/deep",
        "/mnt/with space",
    ]
    assert entries[1] == MountEntry("/mnt/with space", "fuse.vdiskfs", "/pool\\x", 39, 1000)
    assert entries[1].is_vdiskfs
    assert entries[0].owner_uid is None


def test_the_last_mount_on_a_mountpoint_is_the_visible_one() -> None:
    entries = mount_table.parse_mountinfo(MOUNTINFO)
    found = mount_table.mount_at("/mnt/with space", entries)
    assert found is not None
    assert found.source == "/second"
    assert mount_table.mount_at("/mnt", entries) is None


def test_a_path_lies_under_its_deepest_mount() -> None:
    entries = mount_table.parse_mountinfo(MOUNTINFO)
    for path, source in (
        ("/mnt/with space/a/b", "/second"),
        ("/mnt/with space", "/second"),
        ("/mnt/with space/deep/x", "tmpfs"),
        ("/mnt/with spaces", "/dev/vda"),
    ):
        found = mount_table.mount_above(path, entries)
        assert found is not None
        assert found.source == source


def test_links_are_followed_up_to_a_vdiskfs_mount_and_not_inside(tmp_path: pathlib.Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    (mountpoint / "link").symlink_to("/elsewhere")
    (tmp_path / "there").symlink_to("mnt")
    (tmp_path / "round").symlink_to("round")
    entries = [MountEntry(str(mountpoint), "fuse.vdiskfs", "/pool", 1, 0)]
    assert mount_table.resolve(f"{tmp_path}/there/link/x", entries) == f"{mountpoint}/link/x"
    assert mount_table.resolve(f"{tmp_path}/absent/../there", entries) == str(mountpoint)
    assert mount_table.resolve(f"{tmp_path}/round/x", entries) == f"{tmp_path}/round/x"
    assert mount_table.resolve("/", entries) == "/"
