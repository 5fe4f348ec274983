"""A vdisk that another node owns: whom each request asks, how often, with which number, and what it learns."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import Fenced, InvalidRequest, NoSpace, NotOwner, Unavailable
from metadata.ids import VdiskId
from metadata.units import VBLOCK_BYTES
from replication.cluster import Answer, Links
from replication.head_write import PUNCH_VBLOCKS
from replication.ownership import Owner
from replication.remote import REQUEST_S, RETRY_S, Remote, piece_end
from tests.replication.rig import B, run
from tests.replication.switch import Switch

V = VdiskId(20)
PIECE = PUNCH_VBLOCKS * VBLOCK_BYTES
GONE_S = 2 * REQUEST_S
Outcome = Exception | bytes


class Owners:
    """Nodes b and c, one of which owns the vdisk that node a has open; each says what the test tells it to."""

    def __init__(self) -> None:
        switch = Switch()
        self.links: Links = switch.join("a")
        self.owner = Owner("b", 3)
        self.facts = {"size": 8 * B, "own_blocks": 8, "mtime_ns": 5, "version": 7}
        self.asked: list[tuple[str, str, dict[str, Any], bytes]] = []
        """(node, deed, arguments, data) of each try."""
        self.outcomes: list[Outcome] = []
        """Of the next tries, each; then nothing is said."""
        self.found = 0
        self.noted: list[tuple[int, int]] = []
        self.resized: list[int] = []
        deeds = ("read", "write", "punch", "truncate", "grow", "seek", "flush", "look")
        for node in ("b", "c"):
            links = switch.join(node)
            for deed in deeds:
                links.serve(f"remote_{deed}", self._serve(node, deed))
        self.remote = Remote(
            V,
            self.links,
            node="a",
            find=self._find,
            perform=self._perform,
            note_version=lambda vdisk, version: self.noted.append((vdisk, version)),
        )
        self.remote.note_resized = self.resized.append

    async def _find(self, vdisk: VdiskId) -> Owner:
        await trio.lowlevel.checkpoint()
        assert vdisk == V
        self.found += 1
        return self.owner

    def _serve(self, node: str, deed: str) -> Callable[[str, Mapping[str, Any], bytes], Awaitable[Answer]]:
        async def serve(_: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
            await trio.lowlevel.checkpoint()
            return self.facts, self._outcome(node, deed, arguments, data)

        return serve

    async def _perform(self, deed: str, arguments: dict[str, Any], data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._outcome("a", deed, arguments, data)

    def _outcome(self, node: str, deed: str, arguments: Mapping[str, Any], data: bytes) -> bytes:
        self.asked.append((node, deed, dict(arguments), data))
        outcome = self.outcomes.pop(0) if self.outcomes else b""
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def tried(self) -> list[str]:
        return [node for node, *_ in self.asked]


def with_owners(body: Callable[[Owners, Remote], Awaitable[None]]) -> None:
    async def scenario() -> None:
        owners = Owners()
        await body(owners, owners.remote)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_owner_is_found_once_and_asked_under_its_epoch() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.outcomes = [b"bytes", b""]
        assert await remote.read(3, 5) == b"bytes"
        await remote.write(B, b"data")
        (first, second) = owners.asked
        assert first[:2] == ("b", "read")
        assert (first[2]["offset"], first[2]["size"], first[2]["epoch"], first[2]["vdisk"]) == (3, 5, 3, V)
        assert (second[1], second[2]["offset"], second[3]) == ("write", B, b"data")
        assert (owners.found, remote.forwarded) == (1, 2)
        assert owners.noted == [(V, 7)] * 2

    with_owners(body)


def test_a_request_that_is_tried_again_keeps_its_number_and_what_was_known_before() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        await remote.look()
        owners.outcomes = [NotOwner("not any more"), Unavailable("busy"), Fenced("deposed"), b""]
        owners.facts["version"] = 9
        await remote.write(0, b"data")
        tries = [arguments for _, deed, arguments, _ in owners.asked if deed == "write"]
        assert len({arguments["call"] for arguments in tries}) == 1
        assert [arguments["since"] for arguments in tries] == [7] * 4
        assert [arguments["again"] for arguments in tries] == [False, True, True, True]
        assert owners.found == 4  # nobody is trusted to be the owner after that
        await remote.write(0, b"data")
        assert owners.asked[-1][2]["call"] != tries[0]["call"]
        assert owners.asked[-1][2]["since"] == 9

    with_owners(body)


def test_two_files_never_give_one_number() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        others = Owners()
        await remote.look()
        await others.remote.look()
        assert owners.asked[0][2]["call"] != others.asked[0][2]["call"]

    with_owners(body)


def test_another_owner_is_asked_after_a_change() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        await remote.look()
        owners.outcomes, owners.owner = [NotOwner("c has it")], Owner("c", 4)
        await remote.write(0, b"data")
        assert owners.tried() == ["b", "b", "c"]
        assert owners.asked[-1][2]["epoch"] == 4

    with_owners(body)


def test_what_has_become_this_node_s_own_is_done_here() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.outcomes, owners.owner = [NotOwner("no head here after all"), b"found"], Owner("a", 4)
        assert await remote.read(0, 5) == b"found"
        assert owners.tried() == ["a", "a"]
        assert (remote.forwarded, owners.noted) == (0, [])

    with_owners(body)


@pytest.mark.parametrize("error", [NoSpace("the pool is full"), InvalidRequest("no such offset")])
def test_what_the_owner_could_not_do_is_not_tried_again(error: Exception) -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.outcomes = [error]
        with pytest.raises(type(error), match=str(error)):
            await remote.write(0, b"data")
        assert owners.tried() == ["b"]

    with_owners(body)


def test_a_silent_owner_is_given_up_after_a_while_and_the_last_reason_said() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.outcomes = [NotOwner("not me")] * 10000
        begun_s = trio.current_time()
        with pytest.raises(Unavailable, match="not done in time: not me vdisk=20"):
            await remote.write(0, b"data")
        assert trio.current_time() - begun_s == pytest.approx(REQUEST_S)
        assert len(owners.asked) <= REQUEST_S / RETRY_S + 1

    with_owners(body)


def test_a_file_whose_writes_are_lost_asks_nobody_any_more() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        remote.fenced = Fenced("what was written is lost")
        for ask in (lambda: remote.write(0, b""), lambda: remote.read(0, 1), remote.flush):
            with pytest.raises(Fenced, match="what was written is lost"):
                await ask()
        assert owners.asked == []

    with_owners(body)


def test_an_answer_that_was_overtaken_takes_nothing_back() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        remote.note_facts({"size": 5, "own_blocks": 1, "mtime_ns": 2, "version": 9})
        remote.note_facts({"size": 6, "own_blocks": 2, "mtime_ns": 3, "version": 8})
        assert (remote.size, remote.own_blocks, remote.mtime_ns, remote.version) == (5, 1, 2, 9)
        remote.note_facts({"size": 7, "own_blocks": 3, "mtime_ns": 4, "version": 9})
        assert (remote.size, remote.own_blocks, remote.mtime_ns, remote.version) == (7, 3, 4, 9)

    with_owners(body)


Deed = Callable[[Remote], Awaitable[object]]
RESIZES: tuple[tuple[Deed, int, bool], ...] = (
    (lambda remote: remote.write(8 * B, bytes(B)), 9 * B, False),
    (lambda remote: remote.write(8 * B, bytes(B)), 8 * B, True),
    (lambda remote: remote.write(0, bytes(B)), 8 * B, False),
    (lambda remote: remote.truncate(B), B, False),
    (lambda remote: remote.truncate(B), 2 * B, True),
    (lambda remote: remote.grow(20 * B), 20 * B, False),
    (lambda remote: remote.grow(B), 8 * B, False),
    (lambda remote: remote.grow(B), 9 * B, True),
    (lambda remote: remote.read(0, B), 8 * B, False),
    (lambda remote: remote.read(0, B), B, True),
)


@pytest.mark.parametrize(("deed", "size", "is_strange"), RESIZES)
def test_a_size_that_nobody_here_has_given_is_told(deed: Deed, size: int, is_strange: bool) -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        await remote.look()
        assert owners.resized == []  # before that none was known
        owners.facts |= {"size": size, "version": 8}
        await deed(remote)
        assert owners.resized == [V] * is_strange

    with_owners(body)


def test_a_place_that_is_sought_may_be_nowhere() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.outcomes = [(5 * B).to_bytes(8, "little"), b"", bytes(8)]
        assert await remote.seek(B, data=True) == 5 * B
        assert await remote.seek(B, data=True) is None
        assert await remote.seek(0, data=False) == 0
        assert [arguments["data"] for _, _, arguments, _ in owners.asked] == [True, True, False]

    with_owners(body)


def test_a_long_discard_goes_piece_by_piece_over_what_has_data_only() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        owners.facts["size"] = 5 * PIECE
        far = 3 * PIECE + 5
        owners.outcomes = [b"", b"", far.to_bytes(8, "little"), b"", b""]
        await remote.punch(B, 100 * PIECE)
        punched = [
            (arguments["offset"], arguments["size"])
            for _, deed, arguments, _ in owners.asked
            if deed == "punch"
        ]
        assert punched == [(B, PIECE - B), (3 * PIECE, PIECE)]  # then there is no more data
        calls = [arguments["call"] for _, deed, arguments, _ in owners.asked if deed == "punch"]
        assert len(set(calls)) == 2

    with_owners(body)


def test_a_discard_of_one_piece_asks_once() -> None:
    async def body(owners: Owners, remote: Remote) -> None:
        await remote.punch(2 * B, 5 * B)
        assert [deed for _, deed, *_ in owners.asked] == ["punch"]

    with_owners(body)


@pytest.mark.parametrize(
    ("offset", "end", "stop"),
    [
        (0, B, B),
        (5, 7, 7),
        (5, B, B),
        (5, 3 * B, B),
        (B, 3 * B, 3 * B),
        (B, 3 * B + 1, 3 * B),
        (3 * B, 3 * B + 1, 3 * B + 1),
        (0, PIECE + B, PIECE),
        (B, PIECE + B, PIECE),
        (PIECE, 2 * PIECE, 2 * PIECE),
    ],
)
def test_the_pieces_of_a_discard_end_with_blocks_and_with_what_one_commit_holds(
    offset: int, end: int, stop: int
) -> None:
    assert piece_end(offset, end) == stop
