"""The verb gc on a mount in memory: which vdisks it means, and how much of the time it takes."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from fusefs.collection_verb import SHARE_BESIDE_GUESTS, CollectionVerb
from fusefs.resolution import PathResolver
from metadata.errors import InvalidRequest, NotFound
from tests.fusefs.mount_in_memory import Mount, on_a_mount


class NotedCollector:
    """Collects nothing and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, Sequence[int] | None, float]] = []

    async def collect(
        self,
        progress: Callable[[Mapping[str, object]], None],
        *,
        dry_run: bool,
        vdisks: Sequence[int] | None,
        share: Callable[[], float],
    ) -> dict[str, int]:
        self.asked.append((dry_run, vdisks, share()))
        progress({"done": 1, "total": 2, "vdisks": 0, "of": 1})
        return {"freed_bytes": 7}


def test_gc_collects_all_or_what_lies_below_a_path() -> None:
    async def main(mount: Mount) -> None:
        collector, handles, news = NotedCollector(), {}, []
        paths = PathResolver(mount.store.namespace, mountpoint="/mnt")
        verb = CollectionVerb(mount.store.namespace, paths, collector=collector, handles=handles).verbs()[
            "gc"
        ]
        inode, handle = await mount.create(b"a")
        await mount.operations.release(handle)
        answer = await verb({"path": ""}, news.append)
        assert answer == {"path": "/", "dry_run": False, "freed_bytes": 7}
        assert news == [{"done": 1, "total": 2, "vdisks": 0, "of": 1}]
        handles[1] = object()
        await verb({"path": "a", "dry_run": True}, news.append)
        assert collector.asked == [(False, None, 1.0), (True, [inode], SHARE_BESIDE_GUESTS)]
        for path, kind in (("b", NotFound), ("a\0", InvalidRequest)):
            with pytest.raises(kind):
                await verb({"path": path}, news.append)

    on_a_mount(main)
