"""The daemon's side of the reading verbs, on a small tree with vdisks that are numbers."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from fusefs import inspection
from fusefs.control import Progress
from fusefs.inspection import Inspection
from metadata.catalog import ROOT_ID, Event, encode_value, inode_key, name_key
from metadata.errors import Corrupt, InvalidRequest, NotFound
from metadata.ids import VdiskId
from metadata.namespace import Inode, Kind, Namespace, encode_inode
from replication.vdisks import VdiskStat

MIB = 1 << 20


class CountedVdisks:
    """Vdisks whose facts follow from their ids; those in ``corrupt`` cannot be loaded."""

    def __init__(self) -> None:
        self.corrupt: set[int] = set()
        self.asked: list[tuple[int, int]] = []
        self.snapshots: list[str | None] = []

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None:
        return None if vdisk % 2 or vdisk in self.corrupt else self._stat(vdisk)

    async def stat(self, vdisk: VdiskId) -> VdiskStat:
        await trio.lowlevel.checkpoint()
        if vdisk in self.corrupt:
            raise Corrupt("its log cannot be read")
        return self._stat(vdisk)

    @staticmethod
    def _stat(vdisk: int) -> VdiskStat:
        return VdiskStat(size=vdisk * MIB, allocated_bytes=vdisk * 4096, mtime_ns=vdisk * 1000, version=vdisk)

    async def describe(self, vdisk: VdiskId) -> dict[str, Any]:
        stat = await self.stat(vdisk)
        return {"size": stat.size, "mtime_ns": stat.mtime_ns, "groups": 3}

    def snapshot(self, vdisk: VdiskId, name: str) -> VdiskStat:
        if name != "then":
            raise NotFound(name)
        return VdiskStat(size=5 * MIB, allocated_bytes=0, mtime_ns=0, version=3)

    async def map(
        self, vdisk: VdiskId, offset: int, length: int, *, snapshot: str | None
    ) -> list[dict[str, Any]]:
        """Data in the first 64 KiB of every 64 MiB, else holes."""
        self.asked.append((offset, length))
        self.snapshots.append(snapshot)
        data = min(65536, length)
        found = [{"offset": offset, "length": data, "kind": "data", "group": 1, "position": offset >> 12}]
        if length > data:
            found.append({"offset": offset + data, "length": length - data, "kind": "hole"})
        return found


def inode(kind: Kind, *, target: bytes = b"", mtime_set_ns: int = 0) -> Inode:
    return Inode(kind, 0o600, 7, 8, 1, 1, 1, mtime_set_ns=mtime_set_ns, target=target)


def a_tree() -> Namespace:
    """/a.img, /dir/{b.img,deep/c.img}, and links; ids from 16."""
    named: list[tuple[int, int, bytes, Inode]] = [
        (16, ROOT_ID, b"a.img", inode(Kind.FILE)),
        (17, ROOT_ID, b"dir", inode(Kind.DIRECTORY)),
        (18, 17, b"b.img", inode(Kind.FILE, mtime_set_ns=10**18)),
        (19, 17, b"deep", inode(Kind.DIRECTORY)),
        (21, 19, b"c\xff.img", inode(Kind.FILE)),
        (22, ROOT_ID, b"inside", inode(Kind.SYMLINK, target=b"/mnt/pool/dir/./deep/../b.img")),
        (23, 17, b"up", inode(Kind.SYMLINK, target=b"../a.img")),
        (24, ROOT_ID, b"outside", inode(Kind.SYMLINK, target=b"/mnt/pool2/a.img")),
        (25, ROOT_ID, b"round", inode(Kind.SYMLINK, target=b"round")),
    ]
    events = [Event(inode_key(ROOT_ID), encode_inode(inode(Kind.DIRECTORY)), 1)]
    for number, parent, name, value in named:
        events.append(Event(inode_key(number), encode_inode(value), 1))
        events.append(Event(name_key(parent, name), encode_value(number), 1))
    events.append(Event(inode_key(31), encode_inode(inode(Kind.FILE)), 1))  # still open, without a name
    namespace = Namespace()
    namespace.apply(events, 1)
    return namespace


class Asked:
    """An inspection with its doubles."""

    def __init__(self) -> None:
        self.vdisks = CountedVdisks()
        self.scanned: list[VdiskId] = []
        self.inspection = Inspection(
            a_tree(), self.vdisks, mountpoint="/mnt/pool", check=self.scan, scrub=self.scan
        )

    async def scan(self, vdisks: Sequence[VdiskId], progress: Progress) -> list[dict[str, Any]]:
        self.scanned = list(vdisks)
        progress({"done": 1, "total": 1})
        return [{"vdisk": vdisk, "problem": "odd", "offset": 0} for vdisk in vdisks if vdisk % 2]

    def ask(self, verb: str, path: object = "", **arguments: object) -> Any:
        asked = self.inspection.verbs()[verb]

        async def run() -> object:
            return await asked({"path": path, **arguments}, lambda progress: None)

        return trio.run(run)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_directory_is_listed_with_the_facts_of_its_vdisks(asked: Asked) -> None:
    answer = asked.ask("ls", "dir")
    assert answer["next"] is None
    assert [(entry["name"], entry["kind"]) for entry in answer["entries"]] == [
        ("b.img", "vdisk"),
        ("deep", "directory"),
        ("up", "symlink"),
    ]
    vdisk, _, link = answer["entries"]
    assert (vdisk["size"], vdisk["allocated_bytes"], vdisk["version"]) == (18 * MIB, 18 * 4096, 18)
    assert (vdisk["mode"], vdisk["uid"], vdisk["gid"]) == ("0600", 7, 8)
    assert link["target"] == "../a.img"


def test_a_modification_time_that_was_set_later_than_the_last_write_counts(asked: Asked) -> None:
    (written,) = asked.ask("ls", "a.img")["entries"]
    (touched,) = asked.ask("ls", "dir/b.img")["entries"]
    assert (written["mtime_ns"], touched["mtime_ns"]) == (16000, 1)


def test_a_vdisk_that_cannot_be_read_does_not_hide_the_others(asked: Asked) -> None:
    asked.vdisks.corrupt = {18}
    entries = asked.ask("ls", "dir")["entries"]
    assert entries[0]["problem"] == "its log cannot be read"
    assert len(entries) == 3


def test_long_listings_come_in_pages_without_gaps(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked.ask("ls")["entries"]
    monkeypatch.setattr(inspection, "LIST_PAGE", 2)
    monkeypatch.setattr(inspection, "YIELD_EVERY", 1)
    paged, after = [], 0
    while after is not None:
        answer = asked.ask("ls", after=after)
        assert len(answer["entries"]) <= 2
        paged += answer["entries"]
        after = answer["next"]
    assert paged == whole
    assert len(whole) == 5


def test_links_are_followed_as_far_as_the_mount_goes(asked: Asked) -> None:
    assert asked.ask("info", "inside")["path"] == "/dir/b.img"
    assert asked.ask("info", "dir/up")["path"] == "/a.img"
    assert asked.ask("info", "/dir/../dir//deep/.")["path"] == "/dir/deep"
    for path, error in (("outside", "out of the mount"), ("round", "too many"), ("round/x", "too many")):
        with pytest.raises(InvalidRequest, match=error):
            asked.ask("info", path)


@pytest.mark.parametrize("path", ["nonesuch", "dir/nonesuch", "a.img/below", "x" * 1000])
def test_what_does_not_exist_is_not_found(asked: Asked, path: str) -> None:
    for verb in ("ls", "info", "du", "map", "check", "scrub"):
        with pytest.raises(NotFound):
            asked.ask(verb, path)


def test_arguments_of_another_kind_are_refused(asked: Asked) -> None:
    for path in (7, None, ["a"], "a\0b"):
        with pytest.raises(InvalidRequest):
            asked.ask("info", path)
    for offset in (-1, "0", 1.5, True):
        with pytest.raises(InvalidRequest):
            asked.ask("map", "a.img", offset=offset)


def test_info_tells_what_a_thing_is(asked: Asked) -> None:
    vdisk = asked.ask("info", "a.img")
    assert (vdisk["kind"], vdisk["vdisk"], vdisk["groups"], vdisk["mtime_ns"]) == ("vdisk", 16, 3, 16000)
    assert asked.ask("info", "dir")["entries"] == 3
    assert asked.ask("info", "dir/deep/c\udcff.img")["path"] == "/dir/deep/c\udcff.img"


def test_du_sums_what_lies_below_each_entry(asked: Asked) -> None:
    answer = asked.ask("du")
    sums = {entry["name"]: (entry["vdisks"], entry["allocated_bytes"]) for entry in answer["entries"]}
    assert sums["a.img"] == (1, 16 * 4096)
    assert sums["dir"] == (2, (18 + 21) * 4096)
    assert answer["total"] == {"vdisks": 3, "size": (16 + 18 + 21) * MIB, "allocated_bytes": 55 * 4096}
    assert asked.ask("du", "dir/b.img")["total"]["vdisks"] == 1


def test_a_map_covers_what_was_asked_and_joins_holes(asked: Asked) -> None:
    asked.vdisks.asked.clear()
    answer = asked.ask("map", "a.img", offset=4096, length=5 * MIB)
    assert (answer["vdisk"], answer["version"], answer["size"]) == (16, 16, 16 * MIB)
    assert [(extent["kind"], extent["offset"]) for extent in answer["extents"]] == [
        ("data", 4096),
        ("hole", 4096 + 65536),
    ]
    assert sum(extent["length"] for extent in answer["extents"]) == 5 * MIB
    assert asked.ask("map", "a.img", offset=16 * MIB)["extents"] == []
    assert asked.ask("map", "a.img", offset=15 * MIB, length=1 << 60)["extents"][-1]["length"] == MIB - 65536


def test_a_long_map_comes_in_pages(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAP_STEP_BYTES", MIB)
    monkeypatch.setattr(inspection, "MAP_PAGE", 4)
    extents, offset = [], 0
    while offset is not None:
        answer = asked.ask("map", "a.img", offset=offset)
        assert len(answer["extents"]) <= 4
        extents += answer["extents"]
        offset = answer["next_offset"]
    assert [extent["offset"] for extent in extents[::2]] == [step * MIB for step in range(16)]
    assert sum(extent["length"] for extent in extents) == 16 * MIB


def test_a_snapshot_has_a_map_of_its_own(asked: Asked) -> None:
    answer = asked.ask("map", "a.img", name="then")
    assert (answer["vdisk"], answer["name"], answer["version"], answer["size"]) == (16, "then", 3, 5 * MIB)
    assert sum(extent["length"] for extent in answer["extents"]) == 5 * MIB
    assert asked.vdisks.snapshots == ["then"]
    with pytest.raises(NotFound):
        asked.ask("map", "a.img", name="never")
    with pytest.raises(InvalidRequest):
        asked.ask("map", "a.img", name=7)


def test_only_vdisks_have_a_map(asked: Asked) -> None:
    with pytest.raises(InvalidRequest, match="is a directory"):
        asked.ask("map", "dir")


def test_a_scan_of_the_root_covers_the_nameless_too(asked: Asked) -> None:
    answer = asked.ask("scrub")
    assert sorted(asked.scanned) == [16, 18, 21, 31]
    assert answer["vdisks"] == 4
    assert {finding["vdisk"]: finding["path"] for finding in answer["findings"]} == {
        21: "/dir/deep/c\udcff.img",
        31: None,
    }


def test_a_scan_of_a_directory_stays_below_it(asked: Asked) -> None:
    asked.ask("check", "dir")
    assert sorted(asked.scanned) == [18, 21]
    assert asked.ask("check", "a.img")["findings"] == []
