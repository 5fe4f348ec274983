"""What only the catalog on etcd promises: history, limits, who is let in."""

import pathlib
import subprocess
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import trio
import trio.testing

from metadata import catalog_etcd, etcd_calls, etcd_watch
from metadata.catalog import Change, Compacted, Event
from metadata.catalog_etcd import (
    create_etcd_catalog,
    forget_etcd_catalog,
    read_login,
)
from metadata.errors import Conflict, Corrupt, Exists, InvalidRequest, NoSpace, NotFound, Unavailable
from metadata.etcd_address import EtcdAddress, parse_etcd_address
from metadata.etcd_messages import Message
from tests.etcd_members import EtcdMembers, free_ports
from tests.metadata.etcd_catalogs import FIRST, catalog_at, read_count, run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    """One member, for all tests that leave it as it was."""
    with EtcdMembers(tmp_path_factory.mktemp("one")) as members:
        yield members


class TestHistory:
    def test_one_of_many_nodes_compacts_and_nobody_loses_the_last_minutes(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "history", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "history") as here, catalog_at(one.url, "history") as there:
                begin = await here.transact(Change(puts=((b"n", b"1"),)))
                for catalog in (here, there):
                    await catalog._history.compact()
                middle = await here.transact(Change(puts=((b"n", b"2"),)))
                for catalog in (here, there):
                    await catalog._history.compact()
                await here.transact(Change(puts=((b"n", b"3"),)))
                with pytest.raises(Compacted):
                    async with aclosing(there.watch(b"n", after=begin - 2)) as watch:
                        await anext(watch)
                async with aclosing(there.watch(b"n", after=middle)) as watch:
                    assert [event.value for event in await anext(watch)] == [b"3"]

        run(main)

    def test_a_watch_that_others_compact_behind_goes_on(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "compacted", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "compacted") as catalog:
                _, start = await catalog.read(b"")
                async with aclosing(catalog.watch(b"n", after=start)) as watch:
                    for number in range(10):
                        revision = await catalog.transact(Change(puts=((b"n", b"%d" % number),)))
                        assert [event.value for event in await anext(watch)] == [b"%d" % number]
                        await trio.to_thread.run_sync(one.ctl, "compact", str(revision))

        run(main)

    def test_a_deletion_at_the_very_revision_of_a_compaction_is_not_missed(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "deleted", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "deleted") as catalog:
                start = await catalog.transact(Change(puts=((b"m", b""),)))
                gone = await catalog.transact(Change(deletes=(b"m",)))
                await trio.to_thread.run_sync(one.ctl, "compact", str(gone))
                with pytest.raises(Compacted):
                    async with aclosing(catalog.watch(b"m", after=start)) as watch:
                        await anext(watch)
                async with aclosing(catalog.watch(b"", after=gone)) as watch:
                    await catalog.transact(Change(puts=((b"m", b"again"),)))
                    assert [event.value for event in await anext(watch)] == [b"again"]

        run(main)

    def test_a_watch_that_nobody_looked_at_for_long_begins_anew(
        self, one: EtcdMembers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "stopped", first=FIRST)
        monkeypatch.setattr(etcd_watch, "STOPPED_S", -1.0)  # each look is late

        async def main() -> None:
            async with catalog_at(one.url, "stopped") as catalog:
                _, start = await catalog.read(b"")
                opened, calls = list[object](), catalog._calls
                open_stream = calls.open_stream

                async def count(verb: str, message: Message) -> object:
                    opened.append(message)
                    monkeypatch.setattr(etcd_watch, "STOPPED_S", -1.0 if len(opened) < 3 else 60.0)
                    return await open_stream(verb, message)

                calls.open_stream = count  # type: ignore[method-assign,assignment]
                async with aclosing(catalog.watch(b"n", after=start)) as watch:
                    await catalog.transact(Change(puts=((b"n", b"1"),)))
                    assert [event.value for event in await anext(watch)] == [b"1"]
                assert len(opened) == 3

        run(main)

    def test_a_read_gives_a_revision_at_which_a_watch_arrives(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "arrives", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "arrives") as here, catalog_at(one.url, "arrives") as there:
                _, start = await here.read(b"")
                one.ctl("put", "elsewhere", "x")
                lease = await there.grant_lease(30)
                await there.transact(Change(puts=((b"session/a", b""),)), lease=lease)
                await there.keep_alive(lease)
                await there.transact(Change(puts=((b"m", b""),)))
                one.ctl("put", "elsewhere", "x")
                _, revision = await here.read(b"n")
                assert revision > start
                async with aclosing(here.watch(b"", after=start)) as watch:
                    while (await anext(watch))[-1].revision < revision:
                        pass

        run(main)


class TestLimits:
    def test_many_rows_are_read_in_pages_of_one_moment(
        self, one: EtcdMembers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "pages", first=FIRST)
        monkeypatch.setattr(catalog_etcd, "PAGE_ROWS", 7)

        async def main() -> None:
            async with catalog_at(one.url, "pages") as catalog:
                keys = [b"name/%03d" % number for number in range(100)]
                await catalog.transact(Change(puts=tuple((key, b"") for key in keys)))
                rows, revision = await catalog.read(b"name/")
                assert [row.key for row in rows] == keys
                assert {row.revision for row in rows} == {revision}

        run(main)

    def test_rows_that_are_long_are_read_in_smaller_pages(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "long", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "long") as catalog:
                for number in range(8):
                    await catalog.transact(Change(puts=((b"long/%d" % number, bytes(1 << 20)),)))
                rows, _ = await catalog.read(b"long/")
                assert [len(row.value) for row in rows] == [1 << 20] * 8

        run(main)

    def test_a_transaction_may_write_thousands_of_rows_at_one_revision(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "thousands", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "thousands") as catalog:
                keys = [b"snap/%04d" % number for number in range(3000)]
                (row,), start = await catalog.read(b"n")
                revision = await catalog.transact(
                    Change(((b"n", row.revision),), puts=tuple((key, b"") for key in keys))
                )
                rows, _ = await catalog.read(b"snap/")
                assert [(row.key, row.revision) for row in rows] == [(key, revision) for key in keys]
                gone = await catalog.transact(Change(deletes=tuple(keys)))
                assert (await catalog.read(b"snap/"))[0] == []
                async with aclosing(catalog.watch(b"snap/", after=start)) as watch:
                    seen: list[Event] = []
                    while not seen or seen[-1].revision < gone:
                        seen += await anext(watch)
                    assert [event.revision for event in seen] == [revision] * 3000 + [gone] * 3000
                with pytest.raises(Conflict):
                    await catalog.transact(Change(((b"n", 1),), puts=tuple((key, b"") for key in keys[:200])))
                assert (await catalog.read(b"snap/"))[0] == []

        run(main)

    def test_what_is_too_large_for_a_transaction_is_refused(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "too large", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "too large") as catalog:
                for puts in (((b"a", bytes(2 << 20)),), tuple((b"%d" % n, b"") for n in range(5000))):
                    with pytest.raises(InvalidRequest, match="in smaller steps"):
                        await catalog.transact(Change(puts=puts))
                assert [row.key for row in (await catalog.read(b""))[0]] == [b"n"]

        run(main)

    def test_a_full_catalog_says_what_to_do(self, tmp_path: pathlib.Path) -> None:
        with EtcdMembers(tmp_path, options=["--quota-backend-bytes", "1000000"]) as members:
            create_etcd_catalog(parse_etcd_address(members.url), "pool", first=FIRST)

            async def main() -> None:
                async with catalog_at(members.url) as catalog:

                    async def fill() -> None:
                        for number in range(20):
                            await catalog.transact(Change(puts=((b"%d" % number, bytes(500_000)),)))

                    with pytest.raises(NoSpace, match="compact and defragment"):
                        await fill()
                    assert await read_count(catalog) == 0

            run(main)


def refusal(url: str, *, environment: dict[str, str] | None = None) -> str:
    """The line that a node gets which is not let in."""

    async def main() -> str:
        with trio.fail_after(60):
            try:
                async with catalog_at(url):
                    return ""
            except (InvalidRequest, Unavailable, NotFound, Corrupt) as exc:
                return str(exc)

    return trio.run(main)


def check_that_auth_may_be_enabled_meanwhile(members: EtcdMembers, monkeypatch: pytest.MonkeyPatch) -> None:
    create_etcd_catalog(parse_etcd_address(members.url), "meanwhile", first=FIRST)

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setenv("VDISKFS_ETCD_LOGIN", "disks:se:cret")
            async with catalog_at(members.url, "meanwhile") as catalog:
                assert await read_count(catalog) == 0
                await trio.to_thread.run_sync(members.ctl, "auth", "enable")
                await catalog.transact(Change(puts=((b"n", b"1"),)))
                assert await read_count(catalog) == 1

    run(main)


class TestWhoIsLetIn:
    def test_a_user_with_a_password_is_let_in_and_nobody_else(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with EtcdMembers(tmp_path) as members:
            members.ctl("user", "add", "root:rootpw")
            members.ctl("user", "grant-role", "root", "root")
            for user in ("disks", "stranger"):
                members.ctl("user", "add", f"{user}:se:cret")
                members.ctl("role", "add", user)
                members.ctl("user", "grant-role", user, user)
            members.ctl("role", "grant-permission", "disks", "--prefix=true", "readwrite", "/vdiskfs/")
            check_that_auth_may_be_enabled_meanwhile(members, monkeypatch)
            assert "asks for a user and password" in refusal(members.url)
            login = tmp_path / "login"
            login.touch(0o600)
            url = f"{members.url}?login={login}"
            login.write_text("disks:wrong\n")
            assert refusal(url) == "the catalog refuses the user or its password user=disks"
            login.write_text("stranger:se:cret\n")
            assert "give its role read and write" in refusal(url)
            login.write_text("disks:se:cret\n")
            create_etcd_catalog(parse_etcd_address(url), "pool", first=FIRST)
            assert refusal(url) == ""
            monkeypatch.setenv("VDISKFS_ETCD_LOGIN", "disks:se:cret")
            assert refusal(members.url) == ""

            async def main() -> None:
                async with catalog_at(url) as catalog:
                    lease = await catalog.grant_lease(10)
                    revision = await catalog.transact(Change(puts=((b"session/a", b""),)), lease=lease)
                    async with aclosing(catalog.watch(b"", after=revision)) as watch:
                        await trio.to_thread.run_sync(members.kill, 0)
                        members.start(0)  # which knows nobody's token
                        await trio.to_thread.run_sync(members.wait_ready, "--user=root:rootpw")
                        await catalog.keep_alive(lease)
                        assert [event.key for event in await anext(watch)] == [b"session/a"]
                    await catalog._history.compact()

            run(main)

    def test_tls_proves_both_sides(self, tmp_path: pathlib.Path) -> None:
        ca, server, node = make_certificates(tmp_path)
        options = ["--cert-file", f"{server}.pem", "--key-file", f"{server}.key"]
        options += ["--client-cert-auth", "--trusted-ca-file", ca]
        own = ["--cacert", ca, "--cert", f"{node}.pem", "--key", f"{node}.key"]
        members = EtcdMembers(tmp_path, options=options, scheme="https")
        try:
            members.start(0)
            members.wait_ready(*own)
            url = f"{members.url}?ca={ca}&cert={node}.pem&key={node}.key"
            create_etcd_catalog(parse_etcd_address(url), "pool", first=FIRST)
            assert refusal(url) == ""
            etcd_calls_s = pytest.MonkeyPatch()
            with etcd_calls_s.context() as patch:
                patch.setattr(etcd_calls.EtcdCalls.call, "__kwdefaults__", {"deadline_s": 1.0})
                assert "not to be trusted" in refusal(f"{members.url}?tls=yes")
                assert "TLS fails" in refusal(f"{members.url}?ca={ca}")
                assert "not etcd" in refusal(members.url)
            missing = f"{members.url}?ca={tmp_path}/missing.pem"
            assert refusal(missing).startswith("the certificates for the catalog cannot be used: ")
        finally:
            members.__exit__()

    def test_what_is_not_etcd_is_told_in_one_line(
        self, one: EtcdMembers, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(etcd_calls.EtcdCalls.call, "__kwdefaults__", {"deadline_s": 1.0})
        (closed,) = free_ports(1)
        assert f"127.0.0.1:{closed}: " in refusal(f"etcd://127.0.0.1:{closed}")
        assert "knows nothing of this pool" in refusal(one.url)
        for said in (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n",
            b"",
        ):
            assert "the catalog does not answer" in refusal_by_a_server_that_says(said)

    def test_the_address_keeps_no_password(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            parse_etcd_address("etcd://disks:secret@host:2379")
        assert "secret" not in str(refused.value)

    def test_a_password_that_others_may_read_is_refused(self, tmp_path: pathlib.Path) -> None:
        login = tmp_path / "login"
        login.write_text("disks:secret")
        login.chmod(0o644)
        address = parse_etcd_address(f"etcd://host?login={login}")
        with pytest.raises(InvalidRequest, match="others may read"):
            read_login(address, {})
        login.chmod(0o640)
        assert read_login(address, {}) == ("disks", "secret")
        assert read_login(address, {"VDISKFS_ETCD_LOGIN": "me:too"}) == ("me", "too")
        login.write_text("secret")
        with pytest.raises(InvalidRequest) as refused:
            read_login(address, {})
        assert "secret" not in str(refused.value)


def refusal_by_a_server_that_says(said: bytes) -> str:
    async def main() -> str:
        async def answer(stream: trio.SocketStream) -> None:
            await stream.receive_some(100)
            if not said:
                await trio.sleep_forever()
            await stream.send_all(said)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            try:
                async with catalog_at(f"etcd://127.0.0.1:{port}"):
                    return ""
            except Unavailable as exc:
                return str(exc)
            finally:
                nursery.cancel_scope.cancel()
        return ""

    return trio.run(main)


def make_certificates(folder: pathlib.Path) -> tuple[str, str, str]:
    """An authority's certificate; the stems of a member's and a node's, each with a key."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)

    ca = str(folder / "ca")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *new_key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", "/CN=ca", "-days", "2"
    )
    stems = []
    for name in ("member", "node"):
        stem = str(folder / name)
        (folder / f"{name}.ext").write_text(
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        openssl("req", *new_key, "-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile", f"{stem}.ext")
        openssl("x509", "-req", "-in", f"{stem}.csr", *signing, "-out", f"{stem}.pem", "-days", "2")
        stems.append(stem)
    return f"{ca}.pem", stems[0], stems[1]


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("etcd://a", (("a", 2379),)),
        ("etcd://a:1,b,10.0.0.1:65535/", (("a", 1), ("b", 2379), ("10.0.0.1", 65535))),
        ("etcd://[::1],[fe80::1]:1", (("::1", 2379), ("fe80::1", 1))),
    ],
)
def test_addresses_are_read_as_they_are_meant(text: str, members: tuple[tuple[str, int], ...]) -> None:
    assert parse_etcd_address(text) == EtcdAddress(members)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a",
        "etcd://",
        "etcd://a,,b",
        "etcd://a:x",
        "etcd://a:0",
        "etcd://::1",
        "etcd://[::1",
        "etcd://a/b",
    ]
    + ["etcd://a?x=1", "etcd://a?ca=relative", "etcd://a?ca=/a&ca=/b", "etcd://a?cert=/a", "etcd://a?tls=no"],
)
def test_addresses_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_etcd_address(text)


def test_formatting_twice_is_refused_and_forgetting_leaves_nothing(one: EtcdMembers) -> None:
    address = parse_etcd_address(one.url)
    create_etcd_catalog(address, "twice", first=FIRST)
    with pytest.raises(Exists):
        create_etcd_catalog(address, "twice", first=FIRST)
    forget_etcd_catalog(address, "twice")
    assert one.ctl("get", "--prefix", "--keys-only", "/vdiskfs/twice/").strip() == ""


def test_a_process_leaves_no_markers_behind(one: EtcdMembers) -> None:
    create_etcd_catalog(parse_etcd_address(one.url), "markers", first=FIRST)
    assert one.ctl("get", "--prefix", "--keys-only", "/vdiskfs/markers/").split() == [
        "/vdiskfs/markers/last",
        "/vdiskfs/markers/row/n",
    ]
