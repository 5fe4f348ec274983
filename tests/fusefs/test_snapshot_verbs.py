"""The verbs snap and clone on mirrors in memory: what they resolve, refuse, and tell the kernel."""

import os

from metadata.catalog import SYNTHETIC_IDS_FROM, decode_value, vdisk_key
from metadata.errors import Exists, InvalidRequest, NotFound
from metadata.ids import PARENT
from tests.fusefs.asked_snapshots import Asked, asking, failing


def test_a_group_is_made_at_one_moment() -> None:
    async def scenario(asked: Asked) -> None:
        folder = await asked.mount.mkdir(b"dir")
        first, second = await asked.disk("a"), await asked.disk("b", parent=folder)
        answer = await asked.ask("snap_create", paths=["a", "dir/b"], name="one")
        assert asked.snapshots.groups == [["one", "one"]]
        made = answer["snapshots"]
        assert [(one["path"], one["vdisk"]) for one in made] == [("/a", first), ("/dir/b", second)]
        assert (made[0]["version"], made[0]["size"], made[0]["own_bytes"]) == (3, 10000, 8192)
        assert len({first, second, *(one["id"] for one in made)}) == 4
        await asked.ask("snap_create", paths=["a", "a"], names=["two", "three"])
        await asked.ask("snap_create", directory="", name="all")
        assert asked.snapshots.groups[2] == ["all", "all"]
        await asked.ask("snap_create", directory="dir", name="four")
        assert await asked.names() == [
            "/a@one", "/a@two", "/a@three", "/a@all", "/dir/b@one", "/dir/b@all", "/dir/b@four",
        ]  # fmt: skip
        assert await asked.names("dir") == ["/dir/b@one", "/dir/b@all", "/dir/b@four"]
        assert await asked.names("a") == ["/a@one", "/a@two", "/a@three", "/a@all"]

    asking(scenario)


def test_what_cannot_be_a_group_is_refused_with_a_reason() -> None:
    async def scenario(asked: Asked) -> None:
        await asked.mount.mkdir(b"dir")
        await asked.disk("a")
        await asked.ask("snap_create", paths=["a"], name="one")
        for arguments, kind, said in (
            ({"paths": ["a"], "name": "one"}, Exists, "already"),
            ({"paths": ["a"], "name": "x/y"}, InvalidRequest, "name"),
            ({"paths": ["a"], "name": "x@y"}, InvalidRequest, "name"),
            ({"paths": ["a"], "name": "x\ny"}, InvalidRequest, "name"),
            ({"paths": ["a"], "name": ""}, InvalidRequest, "name"),
            ({"paths": ["a", "a"], "name": "two"}, InvalidRequest, "named twice: /a@two"),
            ({"paths": ["a", "nothing"], "name": "two"}, NotFound, "no such vdisk: /nothing"),
            ({"paths": ["dir"], "name": "two"}, InvalidRequest, "'/dir' is a directory"),
            ({"paths": ["a"], "names": []}, InvalidRequest, "name is missing"),
            ({"paths": ["a"], "names": ["x", "y"]}, InvalidRequest, "each path needs a name"),
            ({"paths": ["a"], "names": [7]}, InvalidRequest, "name is missing"),
            ({"paths": "a", "name": "two"}, InvalidRequest, "no list"),
            ({"paths": [], "name": "two"}, InvalidRequest, "no vdisk"),
            ({"directory": "dir", "name": "two"}, NotFound, "no vdisks below /dir"),
            ({"directory": "a", "name": "two"}, InvalidRequest, "leave --all away"),
        ):
            async with failing(kind, said):
                await asked.ask("snap_create", **arguments)
        assert await asked.names() == ["/a@one"]

    asking(scenario)


def test_what_the_kernel_has_not_written_back_is_in_the_snapshot() -> None:
    async def scenario(asked: Asked) -> None:
        disk, plain = await asked.disk("a"), await asked.disk("b")
        asked.mount.vdisks.buffered = {disk}
        await asked.ask("snap_create", paths=["a", "b"], name="one")
        await asked.ask("clone", path="a", name=None, new_path="c")
        await asked.ask("clone", path="a", name="one", new_path="d")
        assert asked.kernel.written_back == [disk, disk]
        assert plain not in asked.kernel.written_back

    asking(scenario)


def test_a_snapshot_is_described_renamed_protected_and_removed() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        (made,) = (await asked.ask("snap_create", paths=["a"], name="one"))["snapshots"]
        await asked.ask("clone", path="a", name="one", new_path="c")
        info = await asked.ask("snap_info", path="a", name="one")
        assert (info["kind"], info["vdisk"], info["children"]) == ("snapshot", disk, ["/c"])
        assert (info["clones"], info["file"], info["open_handles"]) == (1, "/.snapshots/a/one", 0)
        await asked.mount.operations.open(made["id"], os.O_RDONLY, asked.mount.ctx)
        assert (await asked.ask("snap_info", path="a", name="one"))["open_handles"] == 1
        assert (await asked.ask("snap_rename", path="a", name="one", new_name="two"))["name"] == "two"
        assert (await asked.ask("snap_protect", path="a", name="two", protected=True))["protected"]
        async with failing(InvalidRequest, "neither true nor false"):
            await asked.ask("snap_protect", path="a", name="two", protected="yes")
        await asked.ask("snap_rm", path="a", name="two")
        inside = SYNTHETIC_IDS_FROM | disk
        assert asked.kernel.forgotten == [(inside, b"one"), (inside, b"two")]
        for verb in ("snap_info", "snap_rm", "snap_protect", "snap_rename"):
            async with failing(NotFound, "no snapshot"):
                await asked.ask(verb, path="a", name="two", new_name="x", protected=True)
        async with failing(NotFound, "no snapshot"):
            await asked.ask("clone", path="a", name="two", new_path="x")

    asking(scenario)


def test_a_clone_is_a_vdisk_with_its_origin_s_owner() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        folder = await asked.mount.mkdir(b"dir")
        await asked.ask("snap_create", paths=["a"], name="one")
        answer = await asked.ask("clone", path="a", name="one", new_path="dir/c")
        assert (answer["path"], answer["size"]) == ("/dir/c", 10000)
        assert answer["parent"] == {"vdisk": disk, "version": 3, "name": "one"}
        clone = (await asked.mount.operations.lookup(folder, b"c", asked.mount.ctx)).st_ino
        inode = asked.mount.store.namespace.inode(clone)
        assert (clone, inode.mode, inode.uid, inode.gid) == (answer["vdisk"], 0o640, 1000, 1001)
        rows, _ = await asked.mount.catalog.read(vdisk_key(clone))
        record = decode_value(rows[0].key, rows[0].value)
        assert isinstance(record, dict)
        assert (record["parent"], record["absent"], record["overlap"]) == ([disk, 3], PARENT, 10000)
        assert asked.mount.vdisks.family.children(disk) == {clone: 3}
        for new_path, kind, said in (
            ("dir/c", Exists, "dir/c exists: choose another name"),
            ("nowhere/c", NotFound, "no such directory: /nowhere"),
            ("", InvalidRequest, "a name is missing"),
            (".snapshots", InvalidRequest, "reserved"),
            ("dir/" + "x" * 256, InvalidRequest, "too long"),
        ):
            async with failing(kind, said):
                await asked.ask("clone", path="a", name="one", new_path=new_path)
        async with failing(InvalidRequest, "is a directory"):
            await asked.ask("clone", path="dir", name=None, new_path="x")
        assert asked.snapshots.pinned == 0

    asking(scenario)
