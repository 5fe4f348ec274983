"""A Ceph pool as an object store: the guard, folders that are objects, long objects, lost answers; without a cluster."""

import ctypes
import errno
import pathlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import Exists, Fenced, InvalidRequest, NoSpace, NotFound, Unavailable
from metadata.units import BLOCK_BYTES
from replication import librados, rados_store
from replication.librados import Change, NotConnected, RadosError
from replication.object_store import GuardedStore, Lost, RetryingStore
from replication.pool_url import canonical_url
from replication.rados_store import RadosStore
from tests.replication.rados_in_memory import RadosInMemory

VDISK = "vdisks/01/0000000000000001/"
GROUP = VDISK + "000001-0000001/"
NEXT = VDISK + "000001-0000002/"
BEGUN = "00000-00000"
B = BLOCK_BYTES


def retrying(objects: RadosInMemory) -> RetryingStore:
    return RetryingStore(RadosStore(objects), pause=lambda _: None)


@pytest.fixture
def objects() -> RadosInMemory:
    return RadosInMemory()


@pytest.fixture
def store(objects: RadosInMemory) -> RetryingStore:
    made = retrying(objects)
    made.put_new(GROUP + BEGUN, b"word")
    return made


def put(store: RetryingStore, position: int, count: int = 1) -> None:
    store.put_new(f"{GROUP}{position:05x}-{count:05x}", bytes([position]) * (count * B))


class TestGroups:
    def test_a_group_is_one_object_with_its_blocks_where_they_lie(
        self, objects: RadosInMemory, store: RetryingStore
    ) -> None:
        for position in (0, 1, 5):
            put(store, position)
        assert [name for name in objects.objects if name.startswith(GROUP)] == [GROUP]
        assert bytes(objects.objects[GROUP].data) == b"\0" * B + b"\1" * B + bytes(3 * B) + b"\5" * B
        assert store.get(GROUP + "00001-00001") == b"\1" * B
        assert sorted(store.list(GROUP).objects) == [BEGUN, "00000-00001", "00001-00001", "00005-00001"]
        assert store.list(VDISK).folders == ["000001-0000001"]

    def test_it_is_begun_once(self, store: RetryingStore) -> None:
        store.put_new(GROUP + BEGUN, b"word")
        with pytest.raises(Exists):
            store.put_new(GROUP + BEGUN, b"another")

    def test_the_same_blocks_are_put_once(self, store: RetryingStore) -> None:
        put(store, 1)
        put(store, 1)
        with pytest.raises(Exists, match="another content"):
            store.put_new(GROUP + "00001-00001", b"\2" * B)
        assert store.get(GROUP + "00001-00001") == b"\1" * B

    def test_joining_moves_no_bytes(self, objects: RadosInMemory, store: RetryingStore) -> None:
        for position in range(4):
            put(store, position)
        before = bytes(objects.objects[GROUP].data)
        assert store.join(GROUP + "00000-00003", [f"{GROUP}{position:05x}-00001" for position in range(3)])
        assert sorted(store.list(GROUP).objects) == [BEGUN, "00000-00003", "00003-00001"]
        assert bytes(objects.objects[GROUP].data) == before
        assert store.get(GROUP + "00000-00003") == before[: 3 * B]

    def test_a_group_goes_as_a_whole_and_takes_what_comes_later_for_lost(
        self, objects: RadosInMemory, store: RetryingStore
    ) -> None:
        put(store, 0)
        store.delete([GROUP + name for name in sorted(store.list(GROUP).objects, reverse=True)])
        assert list(objects.objects) == ["/"]
        with pytest.raises(Fenced, match="collected"):
            put(store, 1)
        with pytest.raises(NotFound):
            store.join(GROUP + "00000-00001", [])
        assert list(objects.objects) == ["/"]


class TestTheGuard:
    def test_groups_of_older_epochs_refuse_what_comes(self, store: RetryingStore) -> None:
        put(store, 0)
        store.fence(VDISK, 2)
        with pytest.raises(Fenced, match="took the vdisk over"):
            put(store, 1)
        with pytest.raises(Fenced, match="newer epoch"):
            store.put_new(NEXT + BEGUN, b"word")
        store.put_new(VDISK + "000002-0000001/" + BEGUN, b"word")
        store.put_new(VDISK + "000002-0000001/00000-00001", bytes(B))
        assert store.get(GROUP + "00000-00001") == bytes(B)
        assert store.list(VDISK).folders == ["000001-0000001", "000002-0000001"]

    def test_what_was_put_before_still_counts_as_put(self, store: RetryingStore) -> None:
        put(store, 0)
        store.fence(VDISK, 2)
        with pytest.raises(Fenced):
            put(store, 0)

    def test_an_older_epoch_raises_nothing(self, store: RetryingStore) -> None:
        store.fence(VDISK, 3)
        store.fence(VDISK, 2)
        with pytest.raises(Fenced):
            store.put_new(VDISK + "000002-0000001/" + BEGUN, b"word")

    def test_a_vdisk_without_groups_needs_none(self, objects: RadosInMemory) -> None:
        retrying(objects).fence(VDISK, 2)
        assert not objects.objects

    def test_what_is_fenced_already_is_not_asked_again(
        self, objects: RadosInMemory, store: RetryingStore
    ) -> None:
        store.fence(VDISK, 2)
        changed: list[str] = []
        objects.on_change = lambda name, change: changed.append(name)
        store.fence(VDISK, 2)
        assert changed == [VDISK]

    @pytest.mark.parametrize("stop", range(6))
    def test_a_group_that_is_begun_while_the_fence_goes_up_is_refused_or_fenced(self, stop: int) -> None:
        objects = RadosInMemory()
        old, new = retrying(objects), RadosStore(objects)
        old.put_new(GROUP + BEGUN, b"word")
        count = 0

        def between(name: str, change: Change) -> None:
            nonlocal count
            count += 1
            if count == stop + 1:
                objects.on_change = None
                new.fence(VDISK, 2)

        objects.on_change = between
        try:
            old.put_new(NEXT + BEGUN, b"word")
        except Fenced:
            return
        objects.on_change = None
        new.fence(VDISK, 2)
        assert objects.attribute(NEXT, "fenced")
        if stop < 3:
            pytest.fail("it counts as begun though its epoch was over")

    @pytest.mark.parametrize("stop", range(5))
    def test_so_is_one_whose_begin_was_tried_again_and_arrived_late(self, stop: int) -> None:
        objects = RadosInMemory()
        old, new = retrying(objects), RadosStore(objects)
        old.put_new(GROUP + BEGUN, b"word")
        changes, late = 0, list[Change]()

        def between(name: str, change: Change) -> None:
            nonlocal changes
            if name == NEXT and not late:
                late.append(change)
                raise RadosError(errno.ETIMEDOUT, name)
            changes += bool(late)
            if changes == stop + 1:
                objects.on_change = None
                new.fence(VDISK, 2)
                if NEXT not in objects.objects:
                    objects.change(NEXT, late[0])

        objects.on_change = between
        try:
            old.put_new(NEXT + BEGUN, b"word")
        except Fenced:
            return
        assert changes <= stop or objects.attribute(NEXT, "fenced")


class TestFolders:
    def test_whoever_makes_an_object_while_another_takes_it_away_is_seen(
        self, objects: RadosInMemory
    ) -> None:
        for stop in range(8):
            one, two = RadosStore(objects), RadosStore(objects)
            one.put("a/b/x", b"1")
            count = 0

            def between(name: str, change: Change, stop: int = stop, two: RadosStore = two) -> None:
                nonlocal count
                count += 1
                if count == stop + 1:
                    objects.on_change = None
                    two.put("a/b/x", b"22")

            objects.on_change = between
            one.delete(["a/b/x"])
            objects.on_change = None
            listed = one.list("a/b/").objects
            assert listed == ({"x": 2} if "a/b/x" in objects.objects else {})
            assert one.list("a/").folders == (["b"] if listed else [])
            one.delete(["a/b/x"])
            assert list(objects.objects) == ["/"]

    @given(seed=st.integers(0, 1 << 32))
    def test_what_is_listed_is_there_and_the_other_way_round_whatever_gets_lost(self, seed: int) -> None:
        objects, chance = RadosInMemory(), random.Random(seed)
        store, model = retrying(objects), dict[str, bytes]()
        names = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "c/") for name in ("x", "y")]
        for _ in range(30):
            if chance.random() < 0.4:
                objects.failing[chance.choice(("change", "read"))] = chance.randrange(3)
                objects.forgetting["change"] = chance.randrange(3)
            name, content = chance.choice(names), chance.randbytes(chance.randrange(1, 4))
            match chance.randrange(3):
                case 0:
                    store.put(name, content)
                    model[name] = content
                case 1:
                    store.delete([name])
                    model.pop(name, None)
                case _:
                    try:
                        store.put_new(name, content)
                        model[name] = content
                    except Exists:
                        assert model.get(name) not in (None, content)
        objects.failing.clear()
        objects.forgetting.clear()
        assert {key: store.get(key) for key in walk(store)} == model
        assert len([name for name in objects.objects if not name.endswith("/")]) == len(model)


def walk(store: RetryingStore, prefix: str = "") -> Iterator[str]:
    listed = store.list(prefix)
    yield from (prefix + name for name in listed.objects)
    for folder in listed.folders:
        yield from walk(store, f"{prefix}{folder}/")


class TestLongObjects:
    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rados_store, "PIECE_BYTES", 1000)

    def test_they_are_several_and_read_as_one(self, objects: RadosInMemory, tmp_path: pathlib.Path) -> None:
        store, content = retrying(objects), random.Random(1).randbytes(4321)
        (tmp_path / "long").write_bytes(content)
        store.put_file("v/long", str(tmp_path / "long"))
        assert store.get("v/long") == content
        assert bytes(store.get_range("v/long", 990, 1020)) == content[990:2010]
        assert store.list("v/").objects == {"long": 4321}
        with pytest.raises(NotFound):
            store.get_range("v/long", 4000, 322)
        store.put("v/long", b"short")
        assert (store.get("v/long"), len(objects.objects)) == (b"short", 3)

    @pytest.mark.parametrize("stop", range(12))
    def test_what_a_killed_process_left_goes_with_the_next(
        self, objects: RadosInMemory, tmp_path: pathlib.Path, stop: int
    ) -> None:
        contents = [random.Random(seed).randbytes(3500) for seed in range(3)]
        paths = [tmp_path / str(number) for number in range(3)]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        store, count = retrying(objects), 0
        store.put_file("v/long", str(paths[0]))

        class Killed(BaseException):
            pass

        def kill(name: str, change: Change) -> None:
            nonlocal count
            count += 1
            if count == stop + 1:
                raise Killed

        objects.on_change = kill
        try:
            store.put_file("v/long", str(paths[1]))
        except Killed:
            pass
        objects.on_change = None
        assert store.get("v/long") in contents[:2]
        store.put_file("v/long", str(paths[2]))
        assert store.get("v/long") == contents[2]
        store.delete(["v/long"])
        assert list(objects.objects) == ["/"]


class TestAnswers:
    @pytest.mark.parametrize(
        ("number", "kind", "words"),
        [
            (errno.ENOSPC, NoSpace, "full"),
            (errno.EDQUOT, NoSpace, "full"),
            (errno.EPERM, InvalidRequest, "refuses this user"),
            (errno.EOPNOTSUPP, InvalidRequest, "erasure-coded"),
            (errno.ESHUTDOWN, Unavailable, "blocklist"),
            (errno.EIO, Unavailable, "cannot read"),
            (errno.ETIMEDOUT, Lost, "timed out"),
        ],
    )
    def test_each_is_told_as_what_it_means(
        self, objects: RadosInMemory, number: int, kind: type[Exception], words: str
    ) -> None:
        def refuse(name: str, change: Change) -> None:
            raise RadosError(number, name)

        objects.on_change = refuse
        with pytest.raises(kind, match=words):
            RadosStore(objects).put_new("x", b"1")

    def test_a_cluster_that_is_away_is_tried_again(self, objects: RadosInMemory) -> None:
        def away(name: str, change: Change) -> None:
            objects.on_change = None
            raise NotConnected("the Ceph cluster does not answer")

        objects.on_change = away
        store = retrying(objects)
        store.put_new("x", b"1")
        assert (store.get("x"), store.retries) == (b"1", 1)

    def test_it_has_what_other_stores_have_not(self, objects: RadosInMemory) -> None:
        assert isinstance(RadosStore(objects), GuardedStore)
        assert retrying(objects).room() == (1 << 40, 1 << 40)


class TestAddresses:
    def test_a_pool_may_have_a_prefix_a_user_and_a_configuration(self) -> None:
        url = "rados://pool/some/where?conf=%2Fetc%2Fceph%2Fa.conf&user=vdisks"
        assert canonical_url("rados://pool/some/where/?user=vdisks&conf=/etc/ceph/a.conf") == url
        with pytest.raises(InvalidRequest, match="no option 'endpoint'; there are conf, user"):
            canonical_url("rados://pool", options=[("endpoint", "http://x")])
        with pytest.raises(InvalidRequest, match="not the address"):
            canonical_url("rados:///prefix")

    def test_a_machine_without_librados_is_told_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(name: str, **_: object) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        librados._library.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", missing)
        with pytest.raises(InvalidRequest, match="apt-get install librados2"):
            rados_store.connect("rados://pool")
