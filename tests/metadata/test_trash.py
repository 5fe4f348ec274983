"""What goes to the trash, comes back or is purged, and what a clone begins with, row by row."""

import errno

import pytest

from metadata.catalog import ROOT_ID, encode_value, orphan_key, setting_key, trash_key, vdisk_key
from metadata.errors import Conflict, Corrupt
from metadata.namespace import Kind
from metadata.namespace_plans import Entry, Origin, plan_clone, plan_root, plan_symlink
from metadata.trash import Trashed, decode_trashed, encode_trashed
from tests.metadata.rows_in_a_dict import Node, refused

GOLDEN = Trashed(b"dir/a\xff", 17, b"a\xff", 1000, 2000)


def test_a_trash_row_has_these_bytes() -> None:
    packed = encode_trashed(GOLDEN)
    assert packed == (
        b"\x85\xa4path\xc4\x06dir/a\xff\xa6parent\x11\xa4name\xc4\x02a\xff"
        b"\xaadeleted_ns\xcd\x03\xe8\xa8until_ns\xcd\x07\xd0"
    )
    assert decode_trashed(trash_key(17), packed, 3) == GOLDEN
    for value in (b"\xc1", encode_value([1]), encode_value({"path": b"x"})):
        with pytest.raises(Corrupt):
            decode_trashed(trash_key(17), value, 3)


def test_a_vdisk_in_the_trash_keeps_all_but_its_name() -> None:
    node = Node()
    folder = node.mkdir(ROOT_ID, b"dir")
    disk = node.create(folder, b"disk")
    node.trash(folder, b"disk")
    assert node.namespace.trashed(disk) == Trashed(
        b"dir/disk", folder, b"disk", node.now_ns, node.now_ns + 100
    )
    assert node.namespace.inode(disk).ctime_ns == node.namespace.inode(folder).mtime_ns == node.now_ns
    assert node.namespace.place(disk) is None
    assert not node.namespace.is_orphan(disk)
    assert vdisk_key(disk) in node.rows.rows
    node.restore(disk, ROOT_ID, b"back")
    assert node.namespace.path(disk) == b"back"
    assert trash_key(disk) not in node.rows.rows


def test_what_is_purged_becomes_an_orphan() -> None:
    node = Node()
    disk = node.create(ROOT_ID, b"disk")
    node.trash(ROOT_ID, b"disk")
    node.purge(disk)
    assert trash_key(disk) not in node.rows.rows
    assert orphan_key(disk) in node.rows.rows
    refused(errno.ENOENT, lambda: node.purge(disk))
    refused(errno.ENOENT, lambda: node.restore(disk, ROOT_ID, b"disk"))


def test_the_trash_refuses_what_cannot_be() -> None:
    node = Node()
    folder, disk = node.mkdir(ROOT_ID, b"dir"), node.create(ROOT_ID, b"disk")
    birth = node.birth()
    node.do(lambda ns: plan_symlink(ns, Entry(ROOT_ID, b"link"), birth=birth, target=b"disk"))
    for name, number in ((b"dir", errno.EINVAL), (b"link", errno.EINVAL), (b"nothing", errno.ENOENT)):
        refused(number, lambda name=name: node.trash(ROOT_ID, name))
    node.trash(ROOT_ID, b"disk")
    node.rmdir(ROOT_ID, b"dir")
    refused(errno.ENOENT, lambda: node.restore(disk, folder, b"disk"))
    refused(errno.EPERM, lambda: node.restore(disk, ROOT_ID, b".snapshots"))
    node.create(ROOT_ID, b"disk")
    refused(errno.EEXIST, lambda: node.restore(disk, ROOT_ID, b"disk"))


def test_a_clone_comes_with_the_row_of_its_origin() -> None:
    node = Node()
    source = node.create(ROOT_ID, b"disk")
    revision = node.rows.rows[vdisk_key(source)][1]
    record = {"parent": [source, 3], "absent": 1, "overlap": 4096}
    origin = Origin(record, ((vdisk_key(source), revision),))
    birth = node.birth(0o600)
    node.do(lambda ns: plan_clone(ns, Entry(ROOT_ID, b"clone"), birth=birth, origin=origin))
    assert node.namespace.inode(birth.inode).kind is Kind.FILE
    assert node.rows.rows[vdisk_key(birth.inode)][0] == encode_value(record)
    refused(
        errno.EEXIST, lambda: plan_clone(node.namespace, Entry(ROOT_ID, b"clone"), birth=birth, origin=origin)
    )
    stale = Origin(record, ((vdisk_key(source), revision + 9),))
    with pytest.raises(Conflict):
        node.do(lambda ns: plan_clone(ns, Entry(ROOT_ID, b"other"), birth=node.birth(), origin=stale))


def test_a_pool_begins_with_its_settings() -> None:
    change = plan_root(0, 0, now_ns=1, settings={"trash_s": 60})
    assert (setting_key("trash_s"), encode_value(60)) in change.puts
