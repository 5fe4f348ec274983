"""Files of a vdisk on several nodes, used as the channel uses them: by handle, wherever the owner is."""

import os

from metadata.errors import NotOwner
from metadata.ids import VdiskId
from replication import head_read, head_write
from replication.company import Company
from replication.remote import Remote
from replication.transfers import TransferCounts
from replication.vdisks import Vdisks


def company_of(vdisks: Vdisks) -> Company:
    assert vdisks.company is not None
    return vdisks.company


def counts_of(vdisks: Vdisks) -> TransferCounts:
    return company_of(vdisks).transfers.counts


async def writer(vdisks: Vdisks, vdisk: int) -> int:
    """A new file open for reading and writing, as a guest without a host's page cache opens it."""
    return await vdisks.open(VdiskId(vdisk), flags=os.O_RDWR | os.O_DIRECT)


async def put(vdisks: Vdisks, number: int, offset: int, data: bytes) -> None:
    for _ in range(10):
        served = await vdisks.head_of(number)
        if isinstance(served, Remote):
            await served.write(offset, data)
            return
        try:
            if not served.write_nowait(offset, memoryview(data)):
                await head_write.write(served, offset, data)
            return
        except NotOwner:
            await vdisks.follow_owner(VdiskId(served.vdisk))
    raise AssertionError("the owner keeps changing")


async def get(vdisks: Vdisks, number: int, offset: int, size: int) -> bytes:
    served = await vdisks.reader_of(number)
    if isinstance(served, Remote):
        return await served.read(offset, size)
    return await head_read.read(served, offset, size)
