"""What tests of snapshots do with them: make one, read it, clone it, delete."""

from metadata.catalog import Change, encode_value, vdisk_key
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot
from replication import head_read
from replication.head import Head
from replication.snapshots import Snapshots, vdisk_record
from replication.vdisks import Vdisks
from replication.view import View
from tests.replication.rig import handles_of, opened

MIB = 1 << 20


async def snap(vdisks: Vdisks, vdisk: int, name: str, number: int) -> Snapshot:
    (made,) = await Snapshots(vdisks).create([(VdiskId(vdisk), name, number)])
    return made


async def view_content(vdisks: Vdisks, snapshot_id: int) -> bytes:
    """All of a snapshot, by both ways, through a handle of its own."""
    number = await vdisks.open_version(snapshot_id)
    try:
        view = await vdisks.reader_of(number)
        assert isinstance(view, View)
        parts = []
        for offset in range(0, view.size, MIB):
            slow = await head_read.read(view, offset, MIB)
            at_once = view.read_nowait(offset, MIB)
            assert at_once is None or bytes(at_once) == slow  # with small caches memory may lack something
            parts.append(slow)
        return b"".join(parts)
    finally:
        vdisks.close(number)


async def clone(vdisks: Vdisks, vdisk: int, name: str | None, child: int) -> Head:
    """As the clone verb does it, without a name in a directory."""
    snapshots = Snapshots(vdisks)
    async with snapshots.origin(VdiskId(vdisk), name) as origin:
        put = (vdisk_key(child), encode_value(vdisk_record(origin)))
        await vdisks.workspace.catalog.transact(Change(compares=((put[0], 0),), puts=(put,)))
        snapshots.note_clone(child, origin)
    return await opened(vdisks, child)


async def delete(vdisks: Vdisks, vdisk: int) -> None:
    for number in handles_of(vdisks, vdisk):
        vdisks.close(number)
    await vdisks.forget(VdiskId(vdisk))


async def rollback(vdisks: Vdisks, vdisk: int, name: str, keep_as: tuple[str, int]) -> Snapshot:
    """With no file open, as the verb demands it."""
    for number in handles_of(vdisks, vdisk):
        vdisks.close(number)
    return await Snapshots(vdisks).rollback(VdiskId(vdisk), name, keep_as=keep_as)


async def flatten(vdisks: Vdisks, vdisk: int) -> None:
    """Without looking at the progress."""
    await Snapshots(vdisks).flatten(VdiskId(vdisk), lambda _: None)
