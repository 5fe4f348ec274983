"""Fuzz targets for configuration and what is kept in the catalog: settings, addresses, credentials, rows, names of objects."""

import datetime
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple
from typing import Any

import msgpack

from fusefs import registry
from fusefs.mount_table import parse_mountinfo
from fusefs.mounting import parse_options
from fusefs.settings import KeeperSettings, NodeSettings, UpgradeSettings, parse_listen
from metadata.catalog import Row, decode_value, id_in_key, split_name_key
from metadata.descent import Descent, read_descent, visible_spans
from metadata.errors import Corrupt, InvalidRequest
from metadata.etcd_address import parse_etcd_address
from metadata.namespace import Namespace, decode_inode, encode_inode
from metadata.snapshots import check_snapshot_name, decode_snapshot, encode_snapshot
from metadata.trash import decode_trashed, encode_trashed
from replication import certificates, credentials, object_store
from replication.object_tables import ObjectTable, Ranges, Span, parse_span, plan_merge, span_name, superseded
from replication.ownership import _read_floor, read_owner, read_resting
from replication.pool_url import canonical_url
from tests.fuzzing.source import Source
from tests.fuzzing.stored import folder
from tools.durations import parse_duration
from tools.sizes import parse_size

SETTINGS = (NodeSettings, KeeperSettings, UpgradeSettings)


def fuzz_settings(data: bytes) -> None:
    """Settings of keeper and daemon: what is read is written and read the same."""
    text = data.decode("utf-8", errors="surrogateescape")
    for kind in SETTINGS:
        with suppress(InvalidRequest):
            found = kind.from_json(text)
            assert kind.from_json(found.to_json()) == found
    with suppress(InvalidRequest):
        parse_options(tuple(text.split(",")), uid=0)
    parse_mountinfo(data)


def fuzz_addresses(data: bytes) -> None:
    """Addresses of object stores, of etcd, of nodes; sizes and times."""
    source = Source(data)
    kind = source.below(8)
    text = source.rest().decode("utf-8", errors="replace")
    text = ("", "", "s3://", "etcd://", "s3://bucket/p?", "etcd://h:1?", "[", "")[kind] + text
    parsers: tuple[Callable[[str], object], ...] = (
        parse_etcd_address,
        parse_listen,
        parse_size,
        parse_duration,
    )
    for parse in parsers:
        with suppress(InvalidRequest):
            parse(text)
    with suppress(InvalidRequest):
        once = canonical_url(text)
        assert canonical_url(once) == once
    with suppress(InvalidRequest):
        check_snapshot_name(text)


_PIECES: list[str] = []


def _certificate_pieces() -> list[str]:
    """A sound node's file, in pieces: facts, key, certificate, authority's certificate."""
    if not _PIECES:
        now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        authority = certificates.make_authority("abcd", now=now)
        own = certificates.make_certificate(authority, "abcd", "here", now=now)
        _PIECES.extend(("cluster: abcd\nnode: here\nexpires: 1900000000\n\n", own.key, own.certificate))
        _PIECES.extend((authority.certificate, authority.key))
    return _PIECES


def fuzz_credentials(data: bytes) -> None:
    """A node's certificate file, an authority, AWS's credentials file."""
    source = Source(data)
    kind = source.below(3)
    if kind == 2:
        path = folder() / "aws"
        path.write_bytes(source.rest())
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(path)
        with suppress(InvalidRequest):
            object_store._file_credentials()
        return
    pieces = list(_certificate_pieces())
    for _ in range(source.below(4)):
        which = source.below(len(pieces))
        at, held = source.below(1024), source.piece().decode("latin-1")
        pieces[which] = pieces[which][:at] + held + pieces[which][at + source.below(256) :]
    text = "".join(pieces[:4]).encode("utf-8") if kind == 0 else source.rest()
    (folder() / "node.pem").write_bytes(text)
    with suppress(Corrupt):
        found = credentials.read_credentials(str(folder()))
        if found is not None:
            assert credentials._day(found.expires)
            certificates.cluster_of(found.authority)
            certificates.valid_until(found.authority)
    signed = certificates.Signed(pieces[4], pieces[3])
    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    with suppress(Corrupt):
        certificates.make_certificate(signed, "abcd", "there", now=now)


_KEYS = (
    b"inode/0000000000000010",
    b"trash/0000000000000010",
    b"snap/0000000000000010/monday",
    b"name/0000000000000001/disk",
    b"vdisk/0000000000000010",
    b"owner/0000000000000010",
    b"orphan/0000000000000010",
    b"next_id",
)
_FIELDS = (
    "kind mode uid gid atime mtime ctime mtime_set target xattrs path parent name deleted_ns until_ns node epoch absent "
    "overlap size parent_overlap flattened rollbacks rolled_back nameless resting floor version collected compacted id "
    "record_place record_check record_end own_blocks mtime_ns created_ns protected generation parent_version"
).split()


def fuzz_rows_of_the_catalog(data: bytes) -> None:
    """A row of any key and value: what is read is written and read the same; the mirror takes it, or refuses it."""
    source = Source(data)
    key = source.choice((*_KEYS, source.piece()))
    value = source.rest() if source.below(2) else msgpack.packb(_value(source))
    with suppress(Corrupt):
        split_name_key(key)
        id_in_key(key, b"vdisk/")
    with suppress(Corrupt):
        inode = decode_inode(key, value, 1)
        assert _are_numbers((inode.mode, inode.uid, inode.gid, inode.mtime_ns))
        assert decode_inode(key, encode_inode(inode), 1) == inode
    with suppress(Corrupt):
        trashed = decode_trashed(key, value, 1)
        assert _are_numbers((trashed.parent, trashed.deleted_ns, trashed.until_ns))
        assert decode_trashed(key, encode_trashed(trashed), 1) == trashed
    if key.startswith(b"snap/"):
        with suppress(Corrupt):
            snapshot = decode_snapshot(key, value)
            assert decode_snapshot(*encode_snapshot(snapshot)) == snapshot
    with suppress(Corrupt):
        read_owner(Row(key, value, 1))
    with suppress(Corrupt):
        Namespace().reload([Row(key, value, 1)], 1)
    with suppress(Corrupt):
        found = decode_value(key, value)
        if isinstance(found, dict):
            _read_vdisk(found)


def _read_vdisk(found: dict[Any, Any]) -> None:
    with suppress(Corrupt):
        descent: Descent = read_descent(found)
        visible_spans(5, descent.rollbacks)
        descent.parent_at(None)
    with suppress(Corrupt):
        resting = read_resting(found)
        assert resting is None or _are_numbers(astuple(resting))
    with suppress(Corrupt):
        floor = _read_floor(found)
        assert _are_numbers(astuple(floor))


def _are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(value, int) for value in values)


def _value(source: Source, depth: int = 0) -> Any:
    kind = source.below(10 if depth < 4 else 6)
    match kind:
        case 0 | 1 | 2:
            return source.number()
        case 3:
            return source.piece()
        case 4:
            return source.choice(("vdisk", "directory", "symlink", "", "x", source.piece().decode("latin-1")))
        case 5:
            return source.choice((None, True, False, -1, 1.5))
        case 6:
            return [_value(source, depth + 1) for _ in range(source.below(4))]
    return {source.choice(_FIELDS): _value(source, depth + 1) for _ in range(1 + source.below(12))}


def fuzz_object_tables(data: bytes) -> None:
    """Names of objects, and which objects hold which blocks, against plain sets."""
    source = Source(data)
    name = source.piece().decode("latin-1")
    parsed = parse_span(name)
    assert parsed is None or span_name(parsed) == name
    ranges, blocks = Ranges(), set[int]()
    for _ in range(source.below(12)):
        start, end = source.below(64), source.below(64)
        if source.below(3):
            ranges.add(start, end)
            blocks |= set(range(start, end))
        else:
            ranges.remove(start, end)
            blocks -= set(range(start, end))
        start, end = source.below(64), source.below(64)
        within = {number for low, high in ranges.within(start, end) for number in range(low, high)}
        assert within == blocks & set(range(start, end))
        missing = {number for low, high in ranges.missing(start, end) for number in range(low, high)}
        assert missing == set(range(start, end)) - blocks
    spans = [Span(source.below(64), source.below(24)) for _ in range(source.below(60))]
    _check_table(spans, source)


def _check_table(spans: list[Span], source: Source) -> None:
    table, held = (
        ObjectTable(spans[::2]),
        {number for span in spans for number in range(span.position, span.end)},
    )
    table.add(spans[1::2])
    start, end = source.below(64), source.below(100)
    got = [
        number
        for piece in table.pieces(start, end)
        for number in range(piece.position, piece.position + piece.count)
    ]
    assert got == sorted(held & set(range(start, end)))
    assert table.end == max(held, default=-1) + 1
    gone = set(superseded(set(table.spans)))
    assert {n for span in set(table.spans) - gone for n in range(span.position, span.end)} == held
    rest = list(table.spans)
    for _ in range(len(rest) + 1):
        run = plan_merge(rest, is_sealed=True)
        if run is None:
            break
        merged = Span(run[0].position, max(span.end for span in run) - run[0].position)
        assert {n for span in run for n in range(span.position, span.end)} == set(
            range(merged.position, merged.end)
        )
        assert set(run) <= set(rest)
        rest = sorted({*(span for span in rest if span not in set(run)), merged})
    else:
        raise AssertionError("merging does not end")
    plan_merge(table.spans, is_sealed=False)
    table.drop(spans[:5])
    assert {n for low, high in table.covered for n in range(low, high)} == {
        n for span in table.spans for n in range(span.position, span.end)
    }


def fuzz_mount_record(data: bytes) -> None:
    """A mount's record in the registry, of any content."""
    path = folder() / "record.json"
    path.write_bytes(data)
    record = registry._load(str(path), os.getuid())
    assert record is None or isinstance(record.mountpoint, str)
