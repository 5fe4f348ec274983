"""Data requests on files whose vdisks other nodes own: done there, with what the kernel's own ways would refuse."""

import pathlib
import random
import struct

import pytest

from fusefs import fuse_abi as abi
from fusefs.data_requests import DataRequests
from metadata.ids import VdiskId
from replication.remote import Remote
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, create, run
from tests.replication.sharing import get, put, writer

THERE, HERE = 20, 21
MIB = 1 << 20


class Node:
    """A node's data requests, and whose set-id bits they took off."""

    def __init__(self, vdisks: Vdisks) -> None:
        self.vdisks, self.cleared = vdisks, list[VdiskId]()
        self.requests = DataRequests(vdisks, clear_suid=self._clear, notifications=self)  # type: ignore[arg-type]

    async def _clear(self, vdisk: VdiskId) -> None:
        self.cleared.append(vdisk)

    async def write_back(self, inode: int, offset: int) -> None:
        raise AssertionError("nobody writes through a cache here")

    async def copy(
        self, source: int, at: int, target: int, to: int, length: int, *, by_others: bool = False
    ) -> int:
        """COPY_FILE_RANGE as it comes from the kernel; how many bytes it says were copied."""
        body = abi.COPY_IN.pack(source, at, 0, target, to, length, 0)
        header = abi.IN_HEADER.pack(
            abi.IN_HEADER_BYTES + len(body), abi.COPY_FILE_RANGE_64, 7, 1, int(by_others), 0, 0, 0, 0
        )
        work = self.requests.parse(abi.COPY_FILE_RANGE_64, header + body)
        assert work is not None
        copied: int = struct.unpack("<Q", await work)[0]
        return copied


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def shared(cluster: ClusterRig, data: bytes) -> tuple[Node, int, int]:
    """Node b, with a file of node a's vdisk, which holds the data, and one of its own."""
    a, b = await cluster.start("a"), await cluster.start("b")
    await create(a, THERE)
    await put(a, await writer(a, THERE), 0, data)
    await create(b, HERE)
    there, here = await writer(b, THERE), await writer(b, HERE)
    assert isinstance(await b.head_of(there), Remote)
    return Node(b), there, here


@pytest.mark.parametrize("length", [1, 511, B + 3, 3 * MIB - 1])
def test_any_range_is_copied_from_and_to_another_node_s_vdisk(cluster: ClusterRig, length: int) -> None:
    async def scenario() -> None:
        async with cluster.running():
            data = random.Random(1).randbytes(4 * MIB)
            node, there, here = await shared(cluster, data)
            assert await node.copy(there, 777, here, 5, length) == length
            assert await get(node.vdisks, here, 5, length) == data[777 : 777 + length]
            assert await node.copy(here, 5, there, 4 * MIB + 1, length) == length
            assert await get(node.vdisks, there, 4 * MIB, length + 1) == b"\0" + data[777 : 777 + length]
            assert await node.copy(there, 0, there, 8 * MIB, length) == length
            assert await get(node.vdisks, there, 8 * MIB, length) == data[:length]
            assert not node.cleared

    run(scenario)


def test_a_copy_ends_at_the_source_s_end_and_a_long_one_goes_on_when_it_is_asked_again(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            node, there, here = await shared(cluster, bytes(range(1, 201)))
            assert await node.copy(there, 150, here, 0, MIB) == 50
            assert await node.copy(there, 200, here, 0, MIB) == 0
            await put(node.vdisks, there, 17 * MIB, b"end")
            first = await node.copy(there, 0, here, 0, 1 << 40)
            assert first == 16 * MIB
            assert await node.copy(there, first, here, first, 1 << 40) == MIB + 3
            assert await get(node.vdisks, here, 17 * MIB - 1, 9) == b"\0end"

    run(scenario)


def test_a_copy_by_somebody_else_takes_the_target_s_set_id_bits(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            node, there, here = await shared(cluster, b"data")
            await node.copy(here, 0, there, 0, 4, by_others=True)
            await node.copy(there, 0, here, 0, 4, by_others=True)
            assert node.cleared == [THERE, HERE]

    run(scenario)
