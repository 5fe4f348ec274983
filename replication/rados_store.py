"""A Ceph pool as an object store whose extent groups are one RADOS object each, appended to under an epoch guard.

    key of the store                        in RADOS (namespace: the address's prefix)
    vdisks/SH/VDISK/EPOCH-NUMBER/           one object: a block lies at its position
      .../00000-00000                       entry of it: the word of who began the group
      .../POSITION-COUNT                    entry of it, set by the same operation that writes the blocks
    any other, NAME                         an object; what is longer than PIECE_BYTES has its bytes in NAME#TOKEN#N
    any other folder/                       an object whose entries are the names directly below it

RADOS lists nothing by prefix, so folders are objects. **What is listed is there, and the other way round**: an entry is
made before its object and taken away after it, under a word of whoever does that; until he has settled it, whoever lists
looks at the object itself.

**The guard.** Each operation is done whole or not at all by the one OSD that has the object. A block and its entry come
together. They are refused once the group has the attribute ``fenced``, a group of an older epoch than its vdisk's folder
has (``epoch``) is refused its entry: a new owner sets both before it reads the log's tail (``fence``). What a deposed owner
still sends, or sent long ago and arrives now, changes nothing from there on.
"""

import errno
import itertools
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from metadata.errors import Exists, Fenced, InvalidRequest, NoSpace, NotFound, Unavailable
from metadata.units import BLOCK_BYTES
from replication.librados import Change, NotConnected, Objects, RadosError, RadosPool
from replication.object_store import Listed, Lost
from replication.object_tables import Span, parse_span

T = TypeVar("T")

PIECE_BYTES = 8 << 20
"""Longer objects are several: an OSD refuses one of more than 128 MiB, and recovers small ones without a pause."""
ROOM_S = 10.0
"""Ceph itself counts what is used every few seconds."""
_GROUP = re.compile(r"(.*/)?([0-9a-f]{6})-[0-9a-f]{7}/")
_TOKEN = re.compile(rb"[0-9a-f]{16}")
_BEGUN = "00000-00000"
_OPEN, _SETTLED, _FENCED = b"?", b"=", b"#"
"""How an entry of a folder begins: look yourself; it is there; it is there, and refuses what comes."""
_WORD_BYTES = 8


class RadosStore:
    """Single operations, nothing tried again: ``RetryingStore`` does that."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._room, self._room_until_s = (0, 0), 0.0
        self._put_bytes, self._put_before_bytes = 0, 0
        """Into groups, since the room was asked for, and in the period before: Ceph counts what is stored some seconds later."""

    # ---- as every store

    def get(self, key: str) -> bytes:
        folder, span = _placed(key)
        if span is None:
            return bytes(self.get_range(key, 0, self._size(key)))
        if span.count:
            return bytes(self.get_range(key, 0, span.count * BLOCK_BYTES))
        begun = self._call(lambda: self._objects.entries(folder, prefix=_BEGUN), key)
        if _BEGUN not in begun:
            raise NotFound(f"there is no such object key={key}")
        return begun[_BEGUN]

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        folder, span = _placed(key)
        if span is not None:
            at = span.position * BLOCK_BYTES + start
            found = self._call(lambda: self._objects.read(folder, at, length), key)
        else:
            found = self._call(lambda: self._read_pieces(key, start, length), key)
        if len(found) != length:
            raise NotFound(f"an object is shorter than its name says key={key}")
        return found

    def put_new(self, key: str, data: bytes | memoryview) -> None:
        folder, span = _placed(key)
        if span is None:
            self._call(lambda: self._make(key, Change(create=True, content=bytes(data))), key)
        elif not span.count:
            change = Change(create=True, entries={_BEGUN: bytes(data)})
            self._call(lambda: self._make(folder, change), key)
        else:
            name = _split(key)[1]
            change = Change(
                must_exist=True, attribute_is={"fenced": b""}, entry_is={name: b""}, entries={name: _SETTLED},
                data=bytes(data), offset=span.position * BLOCK_BYTES,
            )  # fmt: skip
            self._call(lambda: self._append(folder, change), key)
            self._put_bytes += len(data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._call(lambda: self._replace(key, iter((bytes(data),))), key)

    def put_file(self, key: str, path: str) -> None:
        with pathlib.Path(path).open("rb") as file:
            self._call(lambda: self._replace(key, iter(lambda: file.read(PIECE_BYTES), b"")), key)

    def delete(self, keys: Sequence[str]) -> None:
        of_groups: dict[str, list[str]] = {}
        for key in keys:
            folder, span = _placed(key)
            if span is not None:
                of_groups.setdefault(folder, []).append(_split(key)[1])
            else:
                self._call(partial(self._remove, key), key)
        for folder, names in of_groups.items():
            if _BEGUN in names:
                self._call(partial(self._remove, folder), folder)
            else:
                change = Change(must_exist=True, drop=names)
                self._call(partial(self._if_there, folder, change), folder)

    def list(self, prefix: str) -> Listed:
        if _GROUP.fullmatch(prefix):
            names = self._call(lambda: self._entries(prefix), prefix)
            spans = {name: span for name in names if (span := parse_span(name))}
            return Listed({name: span.count * BLOCK_BYTES for name, span in spans.items()}, [])
        return self._call(lambda: self._list(prefix), prefix)

    # ---- what only RADOS does

    def join(self, key: str, old: Sequence[str]) -> None:
        """Makes one object of neighbours, those at the ``old`` keys, without moving their bytes.

        Raises:
            NotFound: the group is gone.
        """
        folder, name = _split(key)
        drop = [_split(each)[1] for each in old]
        change = Change(must_exist=True, entries={name: _SETTLED}, drop=drop)
        self._call(lambda: self._objects.change(folder, change), key)

    def fence(self, prefix: str, epoch: int) -> None:
        """Refuses groups of older epochs below this vdisk's prefix, begun or not, whatever is still appended to them."""
        guard = f"{epoch:06x}".encode()

        def close() -> None:
            folder = prefix
            raised = Change(must_exist=True, attribute_up_to={"epoch": guard}, attributes={"epoch": guard})
            if not self._if_same(folder, raised):
                return  # nothing was ever written, or a newer owner has done the same
            for name, value in self._entries(folder).items():
                match = _GROUP.fullmatch(name)
                if match and int(match[2], 16) < epoch and not value.startswith(_FENCED):
                    self._if_there(folder + name, Change(must_exist=True, attributes={"fenced": guard}))
                    kept = Change(must_exist=True, entry_is={name: value}, entries={name: _FENCED})
                    if value.startswith(_SETTLED):
                        self._if_same(folder, kept)

        self._call(close, prefix)

    def room(self) -> tuple[int, int]:
        """Bytes that the pool may hold, and that are free; some seconds old at times."""
        now_s = time.monotonic()
        if now_s > self._room_until_s:
            self._room = self._call(self._objects.room, "")
            self._room_until_s = now_s + ROOM_S
            self._put_before_bytes, self._put_bytes = self._put_bytes, 0
        total, free = self._room
        return total, max(0, free - self._put_bytes - self._put_before_bytes)

    # ---- folders

    def _make(self, name: str, change: Change) -> None:
        """An object, or one that stands for a folder, and its entry before.

        A group counts as begun only if its epoch is not over *then*: a fence that came between did not see it.
        """
        word = self._announce(name, _word())
        error: RadosError | None = None
        try:
            self._objects.change(name, change)
        except RadosError as exc:
            if exc.number != errno.EEXIST:
                raise
            error = exc
        self._settle(name, word)
        if error is not None:
            raise error

    def _announce(self, name: str, word: bytes) -> bytes:
        """Makes the entry above, to be settled; and those above that."""
        above, entry = _split(name)
        word = _OPEN + word
        try:
            self._objects.change(above, self._guarded(name, Change(must_exist=True, entries={entry: word})))
        except RadosError as exc:
            if exc.number != errno.ENOENT:
                raise
            first = replace(self._guarded(name, Change(entries={entry: word})), attribute_up_to={})
            if above == "/":
                self._objects.change(above, first)
            else:
                self._make(above, first)
        return word

    def _guarded(self, name: str, change: Change) -> Change:
        """With the word that ``_prune`` looks at, and no groups of epochs that are over."""
        match = _GROUP.fullmatch(name)
        return replace(
            change,
            attributes={"touched": _word()},
            attribute_up_to={"epoch": match[2].encode()} if match else {},
        )

    def _settle(self, name: str, word: bytes) -> None:
        above, entry = _split(name)
        settled = Change(must_exist=True, entry_is={entry: word}, entries={entry: _SETTLED})
        if not self._if_same(above, self._guarded(name, settled)):  # somebody else has it in hand
            self._announce(name, _word())

    def _remove(self, name: str) -> None:
        """An object; its entry after it, unless somebody makes it again; and the folder, if that was all."""
        above, entry = _split(name)
        tokens = self._tokens(name)
        text = b" ".join([_OPEN + _word(), *(token.encode() for token in tokens)])
        is_listed = self._if_there(above, Change(must_exist=True, entries={entry: text}))
        self._if_there(name, Change(remove=True))
        self._drop_pieces(name, tokens)
        while is_listed and not self._if_same(above, Change(entry_is={entry: text}, drop=[entry])):
            text = (
                _OPEN + _word()
            )  # made again meanwhile, and perhaps before it was removed: whoever lists looks himself
            is_listed = self._if_there(above, Change(must_exist=True, entries={entry: text}))
            if self._is_there(name):
                return
        self._prune(above)

    def _prune(self, folder: str) -> None:
        """Takes a folder away that has nothing in it, if nobody puts something there now."""
        if folder == "/":
            return
        try:
            touched = self._objects.attribute(folder, "touched")
            if self._objects.entries(folder, count_max=1):
                return
        except RadosError as exc:
            if exc.number == errno.ENOENT:
                return
            raise
        above, entry = _split(folder)
        word = _OPEN + _word()
        if not self._if_there(above, Change(must_exist=True, entries={entry: word})):
            return
        if self._if_same(folder, Change(attribute_is={"touched": touched}, remove=True)):
            self._if_same(above, Change(must_exist=True, entry_is={entry: word}, drop=[entry]))
            self._prune(above)

    def _list(self, prefix: str) -> Listed:
        objects: dict[str, int] = {}
        folders: list[str] = []
        for name, value in self._entries(prefix or "/").items():
            try:
                if name.endswith("/"):
                    if value.startswith(_OPEN):
                        self._objects.size(prefix + name)
                    folders.append(name[:-1])
                else:
                    objects[name] = self._size_of(prefix + name)
            except RadosError as exc:
                if exc.number != errno.ENOENT:
                    raise
        return Listed(objects, folders)

    def _entries(self, name: str, *, prefix: str = "") -> dict[str, bytes]:
        try:
            return self._objects.entries(name, prefix=prefix)
        except RadosError as exc:
            if exc.number == errno.ENOENT:
                return {}
            raise

    # ---- long objects

    def _size(self, key: str) -> int:
        return self._call(lambda: self._size_of(key), key)

    def _size_of(self, key: str) -> int:
        pieces = self._objects.attribute(key, "pieces")
        return int(pieces.split()[1]) if pieces else self._objects.size(key)

    def _read_pieces(self, key: str, start: int, length: int) -> memoryview:
        pieces = self._objects.attribute(key, "pieces")
        if not pieces:
            return self._objects.read(key, start, length)
        token, found = pieces.split()[0].decode(), bytearray()
        while len(found) < length:
            number, skip = divmod(start + len(found), PIECE_BYTES)
            want = min(PIECE_BYTES - skip, length - len(found))
            part = self._objects.read(f"{key}#{token}#{number}", skip, want)
            found += part
            if len(part) < want:
                break
        return memoryview(found)

    def _replace(self, key: str, pieces: Iterator[bytes]) -> None:
        """Puts an object of several pieces, or of one, in place of what is there.

        The entry names all tokens under which there may be pieces, until only those of the object are left.
        """
        token, before = secrets.token_hex(_WORD_BYTES), self._tokens(key)
        word = self._announce(key, " ".join([token, *before]).encode())
        first, second = next(pieces, b""), next(pieces, b"")
        count = size = 0
        if not second:
            change = Change(attributes={"pieces": b""}, content=first)
        else:
            for piece in itertools.chain((first, second), pieces):
                self._objects.change(f"{key}#{token}#{count}", Change(content=piece))
                count, size = count + 1, size + len(piece)
            change = Change(attributes={"pieces": f"{token} {size}".encode()}, content=b"")
        self._objects.change(key, change)
        self._drop_pieces(key, before)
        self._settle(key, word)

    def _tokens(self, key: str) -> Sequence[str]:
        """Under which there may be pieces: of what is there, and of what was put and did not come to its end."""
        above, entry = _split(key)
        words = self._entries(above, prefix=entry).get(entry, b"")[1:].split()
        try:
            words += self._objects.attribute(key, "pieces").split()[:1]
        except RadosError as exc:
            if exc.number != errno.ENOENT:
                raise
        return sorted({word.decode() for word in words if _TOKEN.fullmatch(word)})

    def _drop_pieces(self, key: str, tokens: Sequence[str]) -> None:
        for token in tokens:
            count = 0
            while self._is_there(f"{key}#{token}#{count}"):
                count += 1
            for number in reversed(range(count)):  # so that what is left is found again
                self._if_there(f"{key}#{token}#{number}", Change(remove=True))

    def _is_there(self, name: str) -> bool:
        try:
            self._objects.size(name)
        except RadosError as exc:
            if exc.number != errno.ENOENT:
                raise
            return False
        return True

    # ---- answers

    def _append(self, group: str, change: Change) -> None:
        try:
            self._objects.change(group, change)
        except RadosError as exc:
            if exc.number == errno.ENOENT:
                raise Fenced(
                    f"the group is collected: another node took the vdisk over group={group}"
                ) from exc
            if exc.number != errno.ECANCELED:
                raise
            if self._objects.attribute(group, "fenced"):
                raise Fenced(f"another node took the vdisk over group={group}") from exc
            raise Exists(f"the object is there already group={group}") from exc

    def _if_there(self, name: str, change: Change) -> bool:
        try:
            self._objects.change(name, change)
        except RadosError as exc:
            if exc.number != errno.ENOENT:
                raise
            return False
        return True

    def _if_same(self, name: str, change: Change) -> bool:
        try:
            return self._if_there(name, change)
        except RadosError as exc:
            if exc.number != errno.ECANCELED:
                raise
            return False

    def _call(self, call: Callable[[], T], key: str) -> T:
        try:
            return call()
        except NotConnected as exc:
            raise Lost(str(exc)) from exc
        except RadosError as exc:
            raise _told(exc, key) from exc


def _told(exc: RadosError, key: str) -> Exception:
    match exc.number:
        case errno.ENOENT:
            return NotFound(f"there is no such object key={key}")
        case errno.EEXIST:
            return Exists(f"the object is there already key={key}")
        case errno.ECANCELED:
            return Fenced(f"a newer epoch has begun key={key}")
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"the Ceph pool is full: {exc}")
        case errno.EPERM | errno.EACCES:
            what = f"Ceph refuses this user the pool: give it 'mon allow r, osd allow rwx pool=...': {exc}"
            return InvalidRequest(what, number=errno.EIO)
        case errno.EOPNOTSUPP:
            what = f"the Ceph pool has no object maps: choose a replicated one, not an erasure-coded: {exc}"
            return InvalidRequest(what, number=errno.EIO)
        case errno.ESHUTDOWN:
            return Unavailable(f"Ceph has this client on its blocklist: mount again: {exc}")
        case errno.EIO:
            return Unavailable(f"Ceph cannot read this: {exc}")
    return Lost(str(exc))


def _word() -> bytes:
    return secrets.token_hex(_WORD_BYTES).encode()


def _split(name: str) -> tuple[str, str]:
    """The folder a name is in, and its entry there."""
    above, _, last = name[:-1].rpartition("/")
    return (above + "/", last + name[-1]) if above else ("/", name)


def _placed(key: str) -> tuple[str, Span | None]:
    """The group that a key is in, and which blocks of it; no blocks: an object of its own."""
    folder, name = _split(key)
    span = parse_span(name) if _GROUP.fullmatch(folder) else None
    return folder, span


def connect(url: str) -> RadosStore:
    """The store at a canonical address; no request is made yet.

    Raises:
        InvalidRequest: librados is not installed.
    """
    parts, said = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    objects = RadosPool(
        parts.netloc, namespace=parts.path.strip("/"), user=said.get("user", ""), configuration=said.get("conf", "")
    )  # fmt: skip
    return RadosStore(objects)
