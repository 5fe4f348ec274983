"""``vdiskfs cluster``: the authority, certificates for nodes, who is there; what is refused, in one line."""

import json
import pathlib
import stat

import pytest

from replication.credentials import read_credentials
from tools import cli


class Pool:
    """A formatted pool, and the command line about it."""

    def __init__(self, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = folder / "pool", capsys
        self.run("format", self.path)

    def run(self, *words: object, exit_code: int = 0) -> str:
        """What it prints: one line on stderr if it fails."""
        assert cli.main([str(word) for word in words]) == exit_code
        printed = self._capsys.readouterr()
        if exit_code:
            assert printed.err.count("\n") == 1
            return printed.err
        assert printed.err == ""
        return printed.out


@pytest.fixture
def pool(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Pool:
    return Pool(tmp_path, capsys)


def test_an_administrator_keeps_the_authority_and_lets_nodes_in(pool: Pool, tmp_path: pathlib.Path) -> None:
    mine, state = tmp_path / "mine", tmp_path / "state"
    assert "not made yet" in pool.run("cluster", "ls", pool.path)
    printed = pool.run("cluster", "init", pool.path, "--ca-dir", mine)
    assert f"{mine}/authority.key can let nodes in" in printed
    assert not (pool.path / "cluster").exists()
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    printed = pool.run("cluster", "join", pool.path, "--node", "n1", "--state", state, "--ca-dir", mine)
    assert "n1 has a certificate until 20" in printed
    made = read_credentials(str(state))
    assert made is not None
    assert made.node == "n1"
    facts = json.loads(pool.run("cluster", "ls", pool.path, "--json"))
    assert facts == {"format": 1, "cluster": made.cluster, "nodes": []}


def test_each_join_makes_a_new_certificate(pool: Pool, tmp_path: pathlib.Path) -> None:
    pool.run("cluster", "init", pool.path)
    texts = set()
    for _ in range(2):
        pool.run("cluster", "join", pool.path, "--node", "n1", "--state", tmp_path / "state")
        texts.add((tmp_path / "state" / "node.pem").read_text())
    assert len(texts) == 2


def test_what_cannot_be_is_refused_in_one_line(pool: Pool, tmp_path: pathlib.Path) -> None:
    join = ("cluster", "join", pool.path, "--node", "n1", "--state", tmp_path / "state")
    assert "the pool has no cluster yet" in pool.run(*join, exit_code=1)
    pool.run("cluster", "init", pool.path)
    assert "has a cluster already" in pool.run(
        "cluster", "init", pool.path, "--ca-dir", tmp_path, exit_code=1
    )
    assert not (tmp_path / "authority.key").exists()
    assert "vdiskfs cluster join POOL --node n1 --ca-dir DIR" in pool.run(
        *join, "--ca-dir", tmp_path / "nothing", exit_code=1
    )
    other = tmp_path / "other"
    pool.run("format", other)
    pool.run("cluster", "init", other)
    assert "two clusters claim this pool" in pool.run(*join, "--ca-dir", other / "cluster", exit_code=1)
    assert "no pool" in pool.run("cluster", "ls", tmp_path / "nowhere", exit_code=1)


@pytest.mark.parametrize("address", ["", ":80", "0.0.0.0", "[::]:80", "host:http", "host:65536", "[::1]80"])
def test_an_address_that_others_cannot_call_is_wrong_usage(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["mount", "/pool", "/mnt", "--listen", address])
    assert ended.value.code == cli.WRONG_USAGE
    assert "listen on HOST or HOST:PORT" in capsys.readouterr().err
