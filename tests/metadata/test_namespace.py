"""Names and attributes: the plans against a tree of dicts, the mirror against the rows it mirrors."""

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.catalog import (
    ROOT_ID,
    Change,
    Event,
    encode_value,
    inode_key,
    name_key,
    vdisk_key,
)
from metadata.errors import Corrupt, NoSpace
from metadata.namespace import Inode, Kind, decode_inode, encode_inode
from metadata.namespace_plans import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    XATTR_VALUE_BYTES_MAX,
    Attributes,
    Entry,
    plan_forget,
    plan_removexattr,
    plan_setattr,
    plan_setxattr,
    plan_store_times,
    plan_symlink,
)
from tests.metadata.rows_in_a_dict import Node, facts, refused

# What a plan refuses, and how.


def test_names_are_refused_as_posix_wants() -> None:
    node = Node()
    file, folder = node.create(ROOT_ID, b"file"), node.mkdir(ROOT_ID, b"folder")
    node.create(folder, b"inner")
    refused(errno.EEXIST, lambda: node.create(ROOT_ID, b"file"))
    refused(errno.EEXIST, lambda: node.mkdir(ROOT_ID, b"file"))
    refused(errno.ENOTDIR, lambda: node.create(file, b"x"))
    refused(errno.ENOENT, lambda: node.create(999, b"x"))
    refused(errno.ENAMETOOLONG, lambda: node.create(ROOT_ID, b"x" * 256))
    node.create(ROOT_ID, b"x" * 255)
    for name in (b"", b".", b"..", b"a/b", b"a\0b"):
        refused(errno.EINVAL, lambda name=name: node.create(ROOT_ID, name))
    refused(errno.EPERM, lambda: node.mkdir(ROOT_ID, b".snapshots"))
    node.mkdir(folder, b".snapshots")
    refused(errno.ENOENT, lambda: node.unlink(ROOT_ID, b"missing"))
    refused(errno.EISDIR, lambda: node.unlink(ROOT_ID, b"folder"))
    refused(errno.ENOTDIR, lambda: node.rmdir(ROOT_ID, b"file"))
    refused(errno.ENOTEMPTY, lambda: node.rmdir(ROOT_ID, b"folder"))
    refused(errno.ENOTDIR, lambda: node.unlink(file, b"x"))


def test_renames_are_refused_as_posix_wants() -> None:
    node = Node()
    node.create(ROOT_ID, b"file")
    a = node.mkdir(ROOT_ID, b"a")
    b = node.mkdir(a, b"b")
    node.mkdir(ROOT_ID, b"empty")
    root = ROOT_ID
    refused(errno.ENOENT, lambda: node.rename((root, b"missing"), (root, b"x")))
    refused(errno.EINVAL, lambda: node.rename((root, b"a"), (b, b"x")))
    refused(errno.EINVAL, lambda: node.rename((root, b"a"), (a, b"x")))
    refused(errno.EINVAL, lambda: node.rename((root, b"a"), (a, b"b"), RENAME_EXCHANGE))
    refused(errno.EINVAL, lambda: node.rename((a, b"b"), (root, b"a"), RENAME_EXCHANGE))
    refused(errno.ENOTEMPTY, lambda: node.rename((root, b"empty"), (root, b"a")))
    refused(errno.ENOTEMPTY, lambda: node.rename((a, b"b"), (root, b"a")))
    refused(errno.EISDIR, lambda: node.rename((root, b"file"), (root, b"empty")))
    refused(errno.ENOTDIR, lambda: node.rename((root, b"a"), (root, b"file")))
    refused(errno.EEXIST, lambda: node.rename((root, b"a"), (root, b"file"), RENAME_NOREPLACE))
    refused(errno.ENOENT, lambda: node.rename((root, b"a"), (root, b"missing"), RENAME_EXCHANGE))
    refused(errno.EINVAL, lambda: node.rename((root, b"a"), (root, b"x"), 4))
    refused(errno.EINVAL, lambda: node.rename((root, b"a"), (root, b"x"), 3))
    refused(errno.ENAMETOOLONG, lambda: node.rename((root, b"a"), (root, b"x" * 256)))
    refused(errno.EPERM, lambda: node.rename((root, b"a"), (root, b".snapshots")))
    before = node.rows.revision
    node.rename((root, b"a"), (root, b"a"))
    assert node.rows.revision == before


def test_nothing_is_made_in_a_removed_directory() -> None:
    node = Node()
    folder = node.mkdir(ROOT_ID, b"folder")
    node.create(ROOT_ID, b"file")
    node.rmdir(ROOT_ID, b"folder")
    assert node.namespace.link_count(folder) == 0
    refused(errno.ENOENT, lambda: node.create(folder, b"x"))
    refused(errno.ENOENT, lambda: node.rename((ROOT_ID, b"file"), (folder, b"x")))


def test_an_attribute_has_limits() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")

    def keep(name: bytes, value: bytes) -> None:
        node.do(lambda ns: plan_setxattr(ns, file, name=name, value=value, now_ns=node.now_ns))

    def drop(name: bytes) -> None:
        node.do(lambda ns: plan_removexattr(ns, file, name=name, now_ns=node.now_ns))

    keep(b"user.a", b"1")
    keep(b"user.b", b"")
    keep(b"user.a", b"\xff")
    assert dict(node.namespace.inode(file).xattrs) == {b"user.a": b"\xff", b"user.b": b""}
    assert node.namespace.inode(file).ctime_ns == node.now_ns
    refused(errno.E2BIG, lambda: keep(b"user.big", bytes(XATTR_VALUE_BYTES_MAX + 1)))
    refused(errno.ENOSPC, lambda: keep(b"user.big", bytes(XATTR_VALUE_BYTES_MAX)))
    refused(errno.EOPNOTSUPP, lambda: keep(b"system.posix_acl_access", b"x"))
    refused(errno.EOPNOTSUPP, lambda: keep(b"of no family", b"x"))
    refused(errno.EINVAL, lambda: keep(b"user.", b"x"))
    refused(errno.ERANGE, lambda: keep(b"user." + b"x" * 251, b"x"))
    drop(b"user.a")
    refused(errno.ENODATA, lambda: drop(b"user.a"))
    assert dict(node.namespace.inode(file).xattrs) == {b"user.b": b""}


def test_a_link_s_target_has_a_limit() -> None:
    node = Node()
    birth = node.birth()
    refused(
        errno.ENAMETOOLONG,
        lambda: plan_symlink(node.namespace, Entry(ROOT_ID, b"l"), birth=birth, target=b"x" * 4096),
    )
    node.do(lambda ns: plan_symlink(ns, Entry(ROOT_ID, b"l"), birth=birth, target=b"x" * 4095))
    inode = node.namespace.inode(birth.inode)
    assert (inode.kind, inode.mode, len(inode.target)) == (Kind.SYMLINK, 0o777, 4095)


# What a plan does.


def test_a_new_vdisk_comes_with_its_row() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"disk")
    inode = node.namespace.inode(file)
    assert (inode.kind, inode.mode, inode.uid, inode.gid) == (Kind.FILE, 0o644, 1000, 1001)
    assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == node.now_ns
    value, _ = node.rows.rows[vdisk_key(file)]
    assert value == encode_value({"parent": None, "absent": 0, "resting": None, "nameless": False})
    assert node.namespace.link_count(file) == 1


def test_the_times_that_posix_names_are_updated() -> None:
    node = Node()
    source, target = node.mkdir(ROOT_ID, b"source"), node.mkdir(ROOT_ID, b"target")

    def touched() -> set[int]:
        inodes = {number for kind in Kind for number in node.namespace.inodes(kind)}
        return {number for number in inodes if node.namespace.inode(number).ctime_ns == node.now_ns}

    file = node.create(source, b"file")
    assert touched() == {source, file}
    assert node.namespace.inode(source).mtime_ns == node.now_ns
    other = node.create(target, b"other")
    node.rename((source, b"file"), (target, b"other"))
    assert touched() == {source, target, file, other}
    assert node.namespace.inode(file).mtime_ns < node.now_ns
    node.unlink(target, b"other")
    assert touched() == {target, file}
    node.rmdir(ROOT_ID, b"source")
    assert touched() == {ROOT_ID, source}


def test_directories_count_their_subdirectories_as_links() -> None:
    node = Node()
    a, b = node.mkdir(ROOT_ID, b"a"), node.mkdir(ROOT_ID, b"b")
    node.create(ROOT_ID, b"file")
    assert [node.namespace.link_count(number) for number in (ROOT_ID, a, b)] == [4, 2, 2]
    node.rename((ROOT_ID, b"a"), (b, b"a"))
    assert [node.namespace.link_count(number) for number in (ROOT_ID, a, b)] == [3, 2, 3]
    node.rename((b, b"a"), (ROOT_ID, b"file"), RENAME_EXCHANGE)
    assert [node.namespace.link_count(number) for number in (ROOT_ID, a, b)] == [4, 2, 2]


def test_a_set_group_id_directory_hands_its_group_down() -> None:
    node = Node()
    shared = node.mkdir(ROOT_ID, b"shared", mode=0o2775)
    node.do(lambda ns: plan_setattr(ns, shared, wanted=Attributes(gid=77), now_ns=node.now_ns))
    inner, file = node.mkdir(shared, b"inner"), node.create(shared, b"file")
    assert node.namespace.inode(inner).gid == node.namespace.inode(file).gid == 77
    assert node.namespace.inode(inner).mode & stat.S_ISGID
    assert not node.namespace.inode(file).mode & stat.S_ISGID


def test_a_new_owner_does_not_get_the_set_id_bits() -> None:
    node = Node()
    file, folder = node.create(ROOT_ID, b"file"), node.mkdir(ROOT_ID, b"folder")

    def change(inode: int, wanted: Attributes) -> Inode:
        node.do(lambda ns: plan_setattr(ns, inode, wanted=wanted, now_ns=node.now_ns))
        return node.namespace.inode(inode)

    node.do(lambda ns: plan_setxattr(ns, file, name=b"security.capability", value=b"x", now_ns=node.now_ns))
    assert change(file, Attributes(mode=0o106777)).mode == 0o6777
    after = change(file, Attributes(uid=5))
    assert (after.mode, after.uid, after.xattrs) == (0o777, 5, ())
    change(file, Attributes(mode=0o2644))
    assert change(file, Attributes(gid=6)).mode == 0o2644
    change(file, Attributes(mode=0o4755))
    assert change(file, Attributes(drop_privileges=True)).mode == 0o755
    change(folder, Attributes(mode=0o2775))
    assert change(folder, Attributes(uid=5)).mode == 0o2775


def test_only_the_attributes_asked_for_change() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    before = node.namespace.inode(file)
    node.do(lambda ns: plan_setattr(ns, file, wanted=Attributes(mtime_ns=5, atime_ns=6), now_ns=9000))
    after = node.namespace.inode(file)
    assert (after.mtime_ns, after.atime_ns, after.ctime_ns, after.mtime_set_ns) == (5, 6, 9000, 9000)
    assert (after.mode, after.uid, after.gid) == (before.mode, before.uid, before.gid)
    node.do(lambda ns: plan_setattr(ns, file, wanted=Attributes(ctime_ns=7, mode=0), now_ns=9001))
    after = node.namespace.inode(file)
    assert (after.mtime_ns, after.ctime_ns, after.mtime_set_ns, after.mode) == (5, 7, 9000, 0)


def test_an_orphan_stays_until_it_is_forgotten() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    node.unlink(ROOT_ID, b"file")
    assert node.namespace.is_orphan(file)
    assert node.namespace.orphans("here") == [file]
    assert node.namespace.orphans("there") == []
    assert node.namespace.path(file) is None
    node.do(lambda ns: plan_forget(ns, file))
    refused(errno.ENOENT, lambda: node.namespace.inode(file))
    assert node.namespace.orphans("here") == []
    revision = node.rows.revision
    node.do(lambda ns: plan_forget(ns, file))
    assert node.rows.revision == revision


def test_paths_lead_to_inodes_and_back() -> None:
    node = Node()
    a = node.mkdir(ROOT_ID, b"a")
    b = node.mkdir(a, b"b")
    file = node.create(b, b"disk")
    assert node.namespace.path(file) == b"a/b/disk"
    assert node.namespace.path(ROOT_ID) == b""
    for path in (b"a/b/disk", b"/a//b/./disk", b"a/../a/b/../../a/b/disk"):
        assert node.namespace.resolve(path) == file
    refused(errno.ENOENT, lambda: node.namespace.resolve(b"a/x/disk"))
    assert (node.namespace.parent(b), node.namespace.parent(ROOT_ID)) == (a, ROOT_ID)


# Recent times.


def test_recent_times_are_shown_and_then_stored() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    node.namespace.note_times(file, mtime_ns=5000, ctime_ns=6000, now_ns=7000)
    assert node.namespace.inode(file).mtime_ns == 5000
    assert node.rows.mirror().inode(file).mtime_ns != 5000
    assert node.namespace.recent_inodes() == [file]
    node.do(lambda ns: plan_store_times(ns, [file, ROOT_ID, 999]))
    assert node.namespace.recent_inodes() == []
    assert node.rows.mirror().inode(file) == node.namespace.inode(file)
    assert node.namespace.inode(file).ctime_ns == 6000
    assert plan_store_times(node.namespace, [file]) == Change()


def test_recent_times_go_along_with_another_change() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    node.namespace.note_times(file, mtime_ns=5000, ctime_ns=6000, now_ns=7000)
    node.do(lambda ns: plan_setattr(ns, file, wanted=Attributes(mode=0), now_ns=8000))
    assert node.namespace.recent_inodes() == []
    stored = node.rows.mirror().inode(file)
    assert (stored.mtime_ns, stored.ctime_ns, stored.mode) == (5000, 8000, 0)


def test_recent_times_outlive_a_change_that_did_not_know_them() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    planned = plan_setattr(node.namespace, file, wanted=Attributes(mode=0), now_ns=4000)
    node.namespace.note_times(file, mtime_ns=5000, ctime_ns=6000, now_ns=7000)
    node.do(lambda ns: planned)
    shown = node.namespace.inode(file)
    assert (shown.mtime_ns, shown.ctime_ns, shown.mode) == (5000, 6000, 0)
    assert node.namespace.recent_inodes() == [file]


def test_times_set_on_purpose_replace_the_recent_ones() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    node.namespace.note_times(file, mtime_ns=5000, ctime_ns=6000, now_ns=7000)
    node.do(lambda ns: plan_setattr(ns, file, wanted=Attributes(mtime_ns=1), now_ns=8000))
    assert node.namespace.inode(file).mtime_ns == 1
    assert node.namespace.recent_inodes() == []


def test_recent_times_survive_an_attempt_that_is_taken_back() -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    node.namespace.note_times(file, mtime_ns=5000, ctime_ns=6000, now_ns=7000)
    before = facts(node.namespace)
    change = plan_setattr(node.namespace, file, wanted=Attributes(mtime_ns=1), now_ns=8000)
    undo = node.namespace.attempt(change, 99)
    assert node.namespace.inode(file).mtime_ns == 1
    node.namespace.undo(undo)
    assert facts(node.namespace) == before
    assert node.namespace.recent_inodes() == [file]


# Bytes.


def test_an_inode_row_is_these_bytes() -> None:
    inode = Inode(Kind.FILE, 0o640, 1, 2, 3, 4, 5)
    assert encode_inode(inode) == (
        b"\x87\xa4kind\xa1f\xa4mode\xcd\x01\xa0\xa3uid\x01\xa3gid\x02\xa5atime\x03\xa5mtime\x04\xa5ctime\x05"
    )
    fuller = Inode(Kind.SYMLINK, 0o777, 1, 2, 3, 4, 5, mtime_set_ns=6, target=b"\xff", xattrs=((b"a", b"b"),))
    assert encode_inode(fuller).endswith(
        b"\xa9mtime_set\x06\xa6target\xc4\x01\xff\xa6xattrs\x81\xc4\x01a\xc4\x01b"
    )
    for value in (inode, fuller):
        assert decode_inode(b"inode/x", encode_inode(value), 9) == value


@pytest.mark.parametrize("value", [{}, [], 5, {"kind": "q"}, {"kind": "f", "mode": 0}])
def test_an_unreadable_row_is_corrupt_and_changes_nothing(value: object) -> None:
    node = Node()
    file = node.create(ROOT_ID, b"file")
    before = facts(node.namespace)
    good = Event(name_key(ROOT_ID, b"new"), encode_value(file), 99)
    for key in (
        inode_key(file),
        b"name/000000000000000f/x",
        b"orphan/000000000000000f",
        b"inode/?",
        b"moves",
    ):
        if (key, value) != (b"moves", 5) and not (key.startswith(b"name/") and value == 5):
            with pytest.raises(Corrupt):
                node.namespace.apply([good, Event(key, encode_value(value), 99)], 99)
    assert facts(node.namespace) == before


def test_rows_of_others_are_passed_over() -> None:
    node = Node()
    before = facts(node.namespace)
    node.namespace.apply([Event(b"vdisk/000000000000000f", b"\xc1", 99), Event(b"new kind/", None, 100)], 100)
    assert facts(node.namespace) == before
    assert node.namespace.revision == 100


def test_listing_positions_stay_while_entries_come_and_go() -> None:
    node = Node()
    for number in range(100):
        node.create(ROOT_ID, b"%d" % number)
    first = node.namespace.children_after(ROOT_ID, position=0, count=50)
    position = first[-1][1]
    node.unlink(ROOT_ID, b"49")  # the very entry the listing stands at
    node.unlink(ROOT_ID, b"3")
    node.rename((ROOT_ID, b"60"), (ROOT_ID, b"4"))
    node.rename((ROOT_ID, b"5"), (ROOT_ID, b"renamed"))
    node.create(ROOT_ID, b"new")
    rest = node.namespace.children_after(ROOT_ID, position=position, count=1000)
    assert [name for name, _ in rest] == [
        *(b"%d" % n for n in range(50, 60)),
        b"4",
        *(b"%d" % n for n in range(61, 100)),
        b"new",
    ]
    assert node.namespace.children_after(ROOT_ID, position=rest[-1][1], count=5) == []
    assert node.namespace.children_after(999, position=0, count=5) == []


@given(st.binary(max_size=64))
def test_any_bytes_in_a_row_are_an_inode_or_corrupt(data: bytes) -> None:
    try:
        decode_inode(b"inode/1", data, 1)
    except Corrupt:
        return


def test_a_full_row_says_there_is_no_space() -> None:
    node = Node()
    for number in range(15):
        node.do(
            lambda ns, number=number: plan_setxattr(
                ns, ROOT_ID, name=b"user.%d" % number, value=bytes(4096), now_ns=1
            )
        )
    with pytest.raises(NoSpace):
        node.do(lambda ns: plan_setxattr(ns, ROOT_ID, name=b"user.x", value=bytes(8192), now_ns=1))
