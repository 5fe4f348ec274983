"""Credentials: made without being asked, kept, renewed; of one cluster a pool, and no key for anybody else's eyes."""

import datetime
import os
import pathlib
import stat
import threading
import time
from contextlib import nullcontext

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Corrupt, Exists, InvalidRequest, NotFound, Unavailable
from replication import credentials
from replication.certificates import Signed, cluster_of, make_authority, make_certificate
from replication.credentials import (
    Credentials,
    ensure_credentials,
    make_cluster,
    read_cluster,
    read_credentials,
    read_identity,
)


class Node:
    """A node's folders, and its pool's catalog."""

    def __init__(self, folder: pathlib.Path, catalog: MemoryCatalog, *, node: str = "one") -> None:
        self.node, self.catalog = node, catalog
        self.state, self.authority = folder / node, folder / "authority"
        self.state.mkdir(exist_ok=True)

    def join(self, *, is_asked: bool = False) -> Credentials:
        async def join() -> Credentials:
            return await ensure_credentials(
                self.catalog,
                node=self.node,
                state=str(self.state),
                folder=str(self.authority),
                is_asked=is_asked,
            )

        return trio.run(join)


@pytest.fixture
def one(tmp_path: pathlib.Path) -> Node:
    return Node(tmp_path, MemoryCatalog())


def expiring(node: Node, *, days: int) -> None:
    """Gives the node a certificate that is valid for so long from now on."""
    own = read_credentials(str(node.state))
    assert own is not None
    now = datetime.datetime.now(datetime.UTC)
    authority = Signed((node.authority / "authority.key").read_text(), own.authority)
    made = make_certificate(authority, own.cluster, node.node, now=now, days=days)
    facts = f"cluster: {own.cluster}\nnode: {node.node}\nexpires: {now.timestamp() + days * 86400:.0f}\n"
    (node.state / "node.pem").write_text(facts + made.key + made.certificate + own.authority)


def test_the_first_node_makes_the_cluster_and_every_later_start_finds_it(one: Node) -> None:
    made = one.join()
    assert made.node == "one"
    assert made.expires > time.time() + 4 * 365 * 86400
    again = one.join()
    assert again == made
    known = trio.run(read_cluster, one.catalog)
    assert known is not None
    assert known.cluster == made.cluster


def test_keys_are_for_their_owner_alone(one: Node) -> None:
    one.join()
    for path, mode in (
        (one.authority, 0o700),
        (one.authority / "authority.key", 0o600),
        (one.state / "node.pem", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_second_node_joins_the_cluster_of_the_first(one: Node, tmp_path: pathlib.Path) -> None:
    first = one.join()
    second = Node(tmp_path, one.catalog, node="two").join()
    assert (second.cluster, second.authority) == (first.cluster, first.authority)


def test_a_node_without_certificate_is_told_to_join_where_the_authority_is_elsewhere(one: Node) -> None:
    one.join()
    one.authority.rename(one.authority.with_name("elsewhere"))
    one.join()  # it has its own
    (one.state / "node.pem").unlink()
    with pytest.raises(
        Unavailable, match=r"no certificate .*vdiskfs cluster join POOL --node one --ca-dir DIR"
    ):
        one.join()


def test_a_pool_that_two_clusters_claim_is_refused(one: Node, tmp_path: pathlib.Path) -> None:
    one.join()
    other = Node(tmp_path, MemoryCatalog(), node="other")
    other.authority = tmp_path / "other-authority"
    other.join()
    other.catalog = one.catalog  # it comes with its own certificate
    with pytest.raises(InvalidRequest, match="certificate is of another cluster than the pool"):
        other.join()
    (other.state / "node.pem").unlink()  # or with its own authority
    with pytest.raises(InvalidRequest, match="two clusters claim this pool"):
        other.join()


def test_a_certificate_is_renewed_in_its_last_third_where_the_authority_is(
    one: Node, caplog: pytest.LogCaptureFixture
) -> None:
    one.join()
    expiring(one, days=100)
    renewed = one.join()
    assert renewed.expires > time.time() + 4 * 365 * 86400
    expiring(one, days=-1)
    assert one.join().expires > time.time()
    expiring(one, days=100)
    one.authority.rename(one.authority.with_name("elsewhere"))
    assert one.join().expires < time.time() + 101 * 86400
    (warning,) = caplog.messages
    assert "this node's certificate expires on 20" in warning
    assert "'vdiskfs cluster join' renews it" in warning
    one.authority.with_name("elsewhere").rename(one.authority)
    expiring(one, days=-1)
    one.authority.rename(one.authority.with_name("elsewhere"))
    with pytest.raises(InvalidRequest, match="certificate has expired: 'vdiskfs cluster join' renews it"):
        one.join()


def test_another_name_in_the_same_state_directory_gets_another_certificate(
    one: Node, tmp_path: pathlib.Path
) -> None:
    one.join()
    one.node = "renamed"
    assert one.join().node == "renamed"


def test_whoever_asks_gets_a_new_certificate(one: Node) -> None:
    first = one.join()
    text = pathlib.Path(first.path).read_text()
    one.join(is_asked=True)
    assert pathlib.Path(first.path).read_text() != text


def test_a_cluster_is_made_once(one: Node, tmp_path: pathlib.Path) -> None:
    async def make(folder: str) -> None:
        await make_cluster(one.catalog, folder, is_asked=True)

    trio.run(make, str(one.authority))
    with pytest.raises(Exists, match="has a cluster already"):
        trio.run(make, str(tmp_path / "second"))


def test_two_first_nodes_at_once_make_one_cluster(tmp_path: pathlib.Path) -> None:
    catalog, made = MemoryCatalog(), list[Credentials]()

    async def join(node: str) -> None:
        state = tmp_path / node
        state.mkdir()
        made.append(
            await ensure_credentials(catalog, node=node, state=str(state), folder=str(tmp_path / "authority"))
        )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for node in ("one", "two", "three"):
                nursery.start_soon(join, node)

    trio.run(main)
    assert len({(one.cluster, one.authority) for one in made}) == 1


def test_damaged_files_are_said_to_be_so(one: Node) -> None:
    own = one.join()
    for text in ("cluster: x\n", "-----BEGIN nothing", pathlib.Path(own.path).read_text()[:900]):
        pathlib.Path(own.path).write_text(text)
        with pytest.raises(Corrupt, match="certificate cannot be read: delete it"):
            one.join()
    pathlib.Path(own.path).unlink()
    (one.authority / "authority.key").write_text("nonsense")
    with pytest.raises(Corrupt, match="authority cannot be read"):
        one.join()
    (one.authority / "authority.pem").unlink()
    with pytest.raises(NotFound, match="no certificate authority here"):
        one.join()


def test_an_authority_that_another_user_keeps_cannot_be_used(one: Node) -> None:
    one.authority = pathlib.Path("/proc/none/authority")
    with pytest.raises(Unavailable, match="cannot make the authority's folder"):
        one.join()


def test_an_identity_stays_what_it_is(tmp_path: pathlib.Path) -> None:
    first = read_identity(str(tmp_path))
    assert read_identity(str(tmp_path)) == first
    assert len(first) == 16
    os.unlink(tmp_path / "identity")
    assert read_identity(str(tmp_path)) != first


def test_an_authority_names_its_cluster_and_no_node() -> None:
    made = make_authority("cluster", now=datetime.datetime.now(datetime.UTC))
    assert "PRIVATE KEY" in made.key
    assert "CERTIFICATE" in made.certificate


def test_hosts_whose_locks_do_not_reach_each_other_make_one_authority(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_alone", lambda folder: nullcontext())
    for number in range(5):
        folder = tmp_path / str(number) / "cluster"
        folder.parent.mkdir()
        threads = [
            threading.Thread(target=credentials._make_authority, args=(str(folder),)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = credentials._read_authority(str(folder))
        make_certificate(made, cluster_of(made.certificate), "a", now=datetime.datetime.now(datetime.UTC))
        assert [path.name for path in folder.parent.iterdir()] == ["cluster"]
        key = serialization.load_pem_private_key(made.key.encode(), None)
        certificate = x509.load_pem_x509_certificate(made.certificate.encode())
        assert key.public_key() == certificate.public_key()
