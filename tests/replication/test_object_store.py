"""Calls to an object store: tried again within a budget, lost answers, refusals, addresses, real ``obstore`` stores."""

import errno
import pathlib

import obstore
import obstore.exceptions
import pytest

from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from replication.object_store import ObstoreStore, RetryingStore, Store, connect
from replication.pool_url import canonical_url, is_object_url
from tests.replication.objects import StoreInMemory
from tests.replication.rados_in_memory import rados_store


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


def retrying(store: Store, clock: Clock, budget_s: float = 30.0) -> RetryingStore:
    return RetryingStore(store, budget_s=budget_s, pause=clock.pause, clock_s=lambda: clock.now_s)


@pytest.fixture(params=["memory", "rados memory", "obstore memory", "obstore file"])
def store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Store:
    if request.param == "memory":
        return StoreInMemory()
    if request.param == "rados memory":
        return rados_store()
    if request.param == "obstore memory":
        return connect("memory://")
    return connect(f"file://{tmp_path}/bucket")


class TestEveryStore:
    def test_an_object_is_there_once_and_whole(self, store: Store) -> None:
        store.put_new("a/b/00000-00001", b"0123456789")
        with pytest.raises(Exists):
            store.put_new("a/b/00000-00001", b"0123456789")
        assert store.get("a/b/00000-00001") == b"0123456789"
        assert bytes(store.get_range("a/b/00000-00001", 3, 4)) == b"3456"
        with pytest.raises(NotFound):
            store.get_range("a/b/00000-00001", 3, 40)

    def test_what_is_not_there_is_said_to_be_so_and_can_be_deleted(self, store: Store) -> None:
        for call in (lambda: store.get("a/none"), lambda: store.get_range("a/none", 0, 1)):
            with pytest.raises(NotFound):
                call()
        store.delete(["a/none", "b"])

    def test_listing_tells_objects_from_folders(self, store: Store) -> None:
        for name in ("v/1/x", "v/1/g/00", "v/1/g/01", "v/1/h/00", "v/2/y", "w"):
            store.put(name, b"12")
        assert store.list("v/1/").objects == {"x": 2}
        assert sorted(store.list("v/1/").folders) == ["g", "h"]
        assert store.list("v/1/g/").objects == {"00": 2, "01": 2}
        assert (store.list("z/").objects, store.list("z/").folders) == ({}, [])
        store.delete(["v/1/g/00", "v/1/g/01"])
        assert store.list("v/1/").folders == ["h"]

    def test_a_file_goes_up_whole(self, store: Store, tmp_path: pathlib.Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(bytes(range(256)) * 50_000)
        store.put_file("c/1.checkpoint", str(source))
        assert store.get("c/1.checkpoint") == source.read_bytes()


class TestTryingAgain:
    def test_throttling_costs_time_and_no_error(self) -> None:
        store, clock = StoreInMemory(), Clock()
        store.objects["a"] = b"x"
        store.failing["get"] = 6
        assert retrying(store, clock).get("a") == b"x"
        assert len(clock.pauses) == 6
        assert all(0 < pause < 8 for pause in clock.pauses)
        assert clock.pauses[5] > clock.pauses[0]

    def test_it_ends_when_the_budget_is_used_up(self) -> None:
        store, clock = StoreInMemory(), Clock()
        store.failing["put"] = 1000
        with pytest.raises(Unavailable, match="503 Slow Down"):
            retrying(store, clock, budget_s=20.0).put_new("a", b"x")
        assert clock.now_s < 28
        assert not store.objects

    def test_a_put_that_was_done_though_its_answer_was_lost_counts_as_done(self) -> None:
        store = StoreInMemory()
        store.forgetting["put"] = 1
        retrying(store, Clock()).put_new("a", b"x")
        assert (store.objects["a"], store.calls["put"]) == (b"x", 2)

    def test_another_content_under_the_name_is_no_success(self) -> None:
        store = StoreInMemory()
        store.objects["a"] = b"y"
        with pytest.raises(Exists, match="another content"):
            retrying(store, Clock()).put_new("a", b"x")

    def test_what_is_not_there_is_not_asked_for_again(self) -> None:
        store, clock = StoreInMemory(), Clock()
        with pytest.raises(NotFound):
            retrying(store, clock).get("a")
        assert clock.pauses == []

    def test_nobody_is_waited_for_once_it_is_closed(self) -> None:
        store = StoreInMemory()
        store.failing["get"] = 1000
        closed = RetryingStore(store)
        closed.close()
        with pytest.raises(Unavailable):
            closed.get("a")


class TestAddresses:
    def test_directories_are_none(self) -> None:
        assert [is_object_url(text) for text in ("s3://b/p", "gs://b", "file:///x")] == [True] * 3
        assert [is_object_url(text) for text in ("/srv/pool", "pool", "./s3:/x", "rbd://p")] == [False] * 4

    def test_options_are_put_in_order_and_join_those_that_are_there(self) -> None:
        found = canonical_url(
            "s3://b/p/?region=eu", options=[("endpoint", "http://h:1"), ("storage_class", "")]
        )
        assert found == "s3://b/p?endpoint=http%3A%2F%2Fh%3A1&region=eu"
        assert canonical_url(found) == found

    @pytest.mark.parametrize("bad", ["s3://", "ftp://b", "s3://key:secret@b", "s3://b?secret_access_key=x"])
    def test_what_is_no_address_or_tells_a_secret_is_refused(self, bad: str) -> None:
        with pytest.raises(InvalidRequest) as told:
            canonical_url(bad)
        assert "=x" not in str(told.value)
        assert "key:" not in str(told.value)

    def test_credentials_come_from_a_file_if_the_environment_has_none(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "credentials"
        file.write_text("[other]\naws_access_key_id = AK\naws_secret_access_key = SK\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        monkeypatch.setenv("AWS_PROFILE", "other")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        made = connect("s3://bucket/prefix?endpoint=http%3A%2F%2F127.0.0.1%3A9")
        assert isinstance(made, ObstoreStore)
        assert made._store.config["access_key_id"] == "AK"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("Client error with status 403 Forbidden: <Code>RequestTimeTooSkewed</Code>", "clock is wrong"),
        ("Client error with status 403 Forbidden: <Code>SignatureDoesNotMatch</Code>", "credentials"),
        ("Client error with status 404: <Code>NoSuchBucket</Code>", "no such bucket"),
    ],
)
def test_what_a_store_refuses_is_named_and_is_an_input_output_error_for_guests(
    monkeypatch: pytest.MonkeyPatch, told: str, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError(told)

    monkeypatch.setattr(obstore, "get", refuse)
    with pytest.raises(InvalidRequest, match=said) as error:
        connect("memory://").get("x")
    assert (error.value.number, "<" in str(error.value)) == (errno.EIO, False)
