"""Calls to an etcd cluster: whichever member answers, within a deadline, logged in where that is asked for.

What comes through here may be done more than once by the time it is answered: a member that did not answer may have
done it, or may do it yet. So callers send only what does no harm twice (``etcd_attempts`` sees to that).

Errors of etcd, by gRPC's number: what another member may do better is tried there; what none will do is ours at once.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from metadata.errors import Exists, InvalidRequest, NoSpace, NotFound, Unavailable
from metadata.etcd_http import HttpMember, Refused, Stream, Unreachable
from metadata.etcd_messages import Message, part_in

CALL_S = 10.0
"""An election takes one to three seconds. Afterwards: Unavailable."""
ATTEMPT_S = 2.0
"""A member is given so long, and twice as long in each further round: it may be slow, not gone."""
ROUND_PAUSE_S = 0.1
CALLS_MAX = 64
"""Under way at once; more wait."""

_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = (
    3, 5, 7, 8, 9, 11, 16,
)  # fmt: skip
_FINAL = {_INVALID, _NOT_FOUND, _DENIED, _PRECONDITION, _OUT_OF_RANGE}

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class AnswerTooLarge(Exception):
    """The gateway does not pass on an answer of this size: ask for less at once."""


class RevisionGone(Exception):
    """etcd has compacted the revision that was asked for."""


class EtcdCalls:
    """One process's way to the cluster. Any task may call."""

    def __init__(self, members: list[HttpMember], *, login: tuple[str, str] | None = None) -> None:
        self._members, self._login = members, login
        self._first = 0
        self._token = ""
        self._has_auth = True
        """As far as is known: it may be switched on and off while this runs."""
        self._cluster = ""
        self._limiter = trio.CapacityLimiter(CALLS_MAX)

    async def call(self, verb: str, message: Message, *, deadline_s: float = CALL_S) -> Message:
        """Ask until a member answers.

        Raises:
            Unavailable: none did; it may be done, or not, or be done yet.
            NotFound, Exists, NoSpace, InvalidRequest, AnswerTooLarge, RevisionGone: etcd says so.
        """
        trouble: dict[str, str] = {}
        with trio.move_on_after(deadline_s):
            async with self._limiter:
                return await self._first_answer(
                    lambda member: self._ask(member, verb, message), trouble, attempt_max_s=CALL_S
                )
        raise self._unavailable(trouble)

    async def open_stream(self, verb: str, message: Message) -> "tuple[Stream, HttpMember]":
        """A stream whose first message has not been read, entered; the caller leaves it.

        Raises:
            Unavailable, InvalidRequest: as with ``call``.
        """

        async def enter(member: HttpMember) -> tuple[Stream, HttpMember]:
            await self._log_in(member)
            stream = member.stream(verb, message, token=self._token, hasleader="true")
            return await stream.__aenter__(), member

        trouble: dict[str, str] = {}
        with trio.move_on_after(CALL_S):
            return await self._first_answer(enter, trouble, attempt_max_s=ATTEMPT_S)
        raise self._unavailable(trouble)

    async def is_well(self, member: HttpMember, verb: str, message: Message) -> bool:
        """Whether this member answers, which it does only if most members answer it."""
        try:
            with trio.move_on_after(ATTEMPT_S):
                await self._ask(member, verb, message)
                return True
        except (Unreachable, Refused) as exc:
            log.info(
                "a member of the catalog does not answer, going to another member=%s: %s", member.name, exc
            )
        return False

    def leave(self, member: HttpMember) -> None:
        """Ask another member first from now on."""
        if self._members[self._first % len(self._members)] is member:
            self._first += 1

    def forget_login(self) -> None:
        """Log in anew before the next call: a member says that it knows the login no more."""
        self._token = ""

    async def aclose(self) -> None:
        """Close all connections."""
        for member in self._members:
            await member.aclose()

    def _leave(self, number: int) -> None:
        if self._first == number:  # else another task has gone on already
            self._first += 1

    async def _first_answer(
        self,
        ask: Callable[[HttpMember], Awaitable[_Answer]],
        trouble: dict[str, str],
        *,
        attempt_max_s: float,
    ) -> _Answer:
        """What the first member says that can be asked; goes round until one can be.

        Args:
            ask: asks one.
            trouble: by member, why it could not be asked; filled in.
            attempt_max_s: one attempt takes ATTEMPT_S, and twice as long with each round, up to this.
        """
        attempt_s, tries = ATTEMPT_S, 0
        while True:
            number = self._first
            member = self._members[number % len(self._members)]
            try:
                with trio.move_on_after(attempt_s):
                    return await ask(member)
                trouble[member.name] = f"no answer within {attempt_s:g} s"
            except Unreachable as exc:
                trouble[member.name] = str(exc)
            except Refused as exc:
                self._raise_if_final(exc)
                trouble[member.name] = exc.text
            self._leave(number)
            tries += 1
            if tries % len(self._members) == 0:
                attempt_s = min(2 * attempt_s, attempt_max_s)
                await trio.sleep(ROUND_PAUSE_S)

    async def _ask(self, member: HttpMember, verb: str, message: Message) -> Message:
        for is_last in (False, True):
            await self._log_in(member)
            token = self._token
            try:
                answer = await member.call(verb, message, token=token)
                break
            except Refused as exc:
                is_unknown = "user name is empty" in exc.text
                self._has_auth |= is_unknown
                is_old = (
                    is_unknown
                    or exc.code == _UNAUTHENTICATED
                    or ("revision" in exc.text and "auth" in exc.text)
                )
                if not is_old or not self._login or is_last:
                    raise
                if self._token == token:
                    self._token = ""
        cluster = str(part_in(answer, "header").get("cluster_id", ""))
        if cluster and self._cluster and cluster != self._cluster:
            raise Unreachable("it belongs to another cluster than the others")
        self._cluster = self._cluster or cluster
        return answer

    async def _log_in(self, member: HttpMember) -> None:
        if not self._login or self._token or not self._has_auth:
            return
        user, password = self._login
        try:
            answer = await member.call("auth/authenticate", {"name": user, "password": password})
        except Refused as exc:
            if "not enabled" in exc.text:
                self._has_auth = False
                log.warning("the catalog asks for no user and password: everybody may read and change it")
                return
            if exc.code == _INVALID:
                raise InvalidRequest(f"the catalog refuses the user or its password user={user}") from None
            raise
        self._token = str(answer.get("token", ""))

    def _raise_if_final(self, exc: Refused) -> None:
        if exc.code == _EXHAUSTED and "space exceeded" in exc.text:
            raise NoSpace(
                "the catalog is full: compact and defragment etcd, then 'etcdctl alarm disarm', or raise its quota"
            ) from exc
        if exc.code == _EXHAUSTED and "larger than max" in exc.text:
            raise AnswerTooLarge from exc
        if exc.code == _OUT_OF_RANGE and "compacted" in exc.text:
            raise RevisionGone from exc
        if exc.code == _NOT_FOUND and "lease" in exc.text:
            raise NotFound("the lease has ended") from exc
        if exc.code == _PRECONDITION and "already exists" in exc.text:
            raise Exists("the catalog has that already") from exc
        if "user name is empty" in exc.text:
            raise InvalidRequest(
                "the catalog asks for a user and password: write USER:PASSWORD into a file and add ?login=FILE to its "
                "address, or set VDISKFS_ETCD_LOGIN"
            ) from exc
        if exc.code == _DENIED:
            raise InvalidRequest(
                "the catalog's user may not do this: give its role read and write for the prefix /vdiskfs/"
            ) from exc
        if exc.code in _FINAL:
            raise InvalidRequest(f"the catalog refuses: {exc.text}") from exc

    def _unavailable(self, trouble: dict[str, str]) -> Unavailable:
        said = "; ".join(f"{name}: {text}" for name, text in trouble.items()) or "too many calls"
        return Unavailable(f"the catalog does not answer: {said}")
