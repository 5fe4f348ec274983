"""What is said to etcd: keys, transactions within transactions, and answers that are not what was asked for."""

import pytest

from metadata.catalog import Event, Row
from metadata.errors import Corrupt, InvalidRequest
from metadata.etcd_messages import (
    OPERATIONS_MAX,
    REQUEST_BYTES_MAX,
    bytes_in,
    check_size,
    compare_lease,
    compare_revision,
    delete_of,
    end_of_prefix,
    events_in,
    number_in,
    parse_message,
    plan_operations,
    put_of,
    range_of,
    ranges_in,
    revision_in,
    rows_in,
    text_of,
)


def test_messages_have_these_shapes() -> None:
    assert put_of(b"k", b"v") == {"request_put": {"key": "aw==", "value": "dg=="}}
    assert put_of(b"k", b"v", lease=7)["request_put"]["lease"] == "7"
    assert delete_of(b"k") == {"request_delete_range": {"key": "aw=="}}
    assert range_of(b"k", b"l", limit=5, revision=9) == {
        "key": "aw==", "range_end": "bA==", "limit": "5", "revision": "9",
    }  # fmt: skip
    assert compare_revision(b"k", 0)["mod_revision"] == "0"
    assert compare_lease(b"k", 3)["target"] == "LEASE"


def test_a_prefix_ends_before_the_next_key_that_lacks_it() -> None:
    assert end_of_prefix(b"row/") == b"row0"
    assert end_of_prefix(b"a\xff\xff") == b"b"


def test_few_operations_are_one_list_and_many_are_transactions_within_one() -> None:
    operations = [put_of(b"%d" % number, b"") for number in range(1000)]
    assert plan_operations(operations[:OPERATIONS_MAX], compare_count=3) == operations[:OPERATIONS_MAX]
    pieces = plan_operations(operations, compare_count=3)
    inner = [piece["request_txn"]["success"] for piece in pieces]
    assert [one for piece in inner for one in piece] == operations
    assert max(map(len, inner)) + max(3, len(pieces)) <= OPERATIONS_MAX


@pytest.mark.parametrize(("writes", "compares"), [(5000, 1), (200, OPERATIONS_MAX)])
def test_what_etcd_cannot_take_at_once_is_refused(writes: int, compares: int) -> None:
    with pytest.raises(InvalidRequest, match="too many rows"):
        plan_operations([{}] * writes, compare_count=compares)
    check_size([b"x" * 1000] * 100)
    with pytest.raises(InvalidRequest, match="too large"):
        check_size([b"x" * REQUEST_BYTES_MAX])


def test_rows_and_events_lose_the_prefix_and_what_is_left_out_counts_as_none() -> None:
    kv = {"key": text_of(b"row/k"), "value": text_of(b"v"), "mod_revision": "7"}
    assert rows_in({"kvs": [kv]}, b"row/") == [Row(b"k", b"v", 7)]
    assert rows_in({}, b"row/") == []
    gone = {"type": "DELETE", "kv": {"key": text_of(b"row/k"), "mod_revision": "8"}}
    assert events_in({"events": [{"kv": kv}, gone]}, b"row/") == [Event(b"k", b"v", 7), Event(b"k", None, 8)]
    assert (revision_in({}), revision_in({"header": {"revision": "9"}})) == (0, 9)


def test_answers_that_are_not_what_was_asked_for_are_corrupt() -> None:
    assert ranges_in({"responses": [{"response_range": {"more": True}}]}, 1) == [{"more": True}]
    for wrong in (
        lambda: ranges_in({"responses": []}, 1),
        lambda: bytes_in({"key": "no base64!"}, "key"),
        lambda: number_in({"n": "x"}, "n"),
        lambda: parse_message(b"[1]"),
        lambda: parse_message(b"{"),
    ):
        with pytest.raises(Corrupt):
            wrong()
