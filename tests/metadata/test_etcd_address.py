"""An etcd cluster's address: what its words mean, and what is refused without repeating a password."""

import pytest

from metadata.errors import InvalidRequest
from metadata.etcd_address import MEMBERS_MAX, EtcdAddress, parse_etcd_address


@pytest.mark.parametrize(
    ("place", "members"),
    [
        ("host", (("host", 2379),)),
        ("host:1", (("host", 1),)),
        ("host:65535/", (("host", 65535),)),
        ("a,b:7,c", (("a", 2379), ("b", 7), ("c", 2379))),
        ("[::1]", (("::1", 2379),)),
        ("[fe80::1]:80,b", (("fe80::1", 80), ("b", 2379))),
    ],
)
def test_members_have_port_2379_unless_told(place: str, members: tuple[tuple[str, int], ...]) -> None:
    assert parse_etcd_address(f"etcd://{place}") == EtcdAddress(members)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("ca=/ca.pem", {"has_tls": True, "ca": "/ca.pem"}),
        ("tls=yes", {"has_tls": True}),
        ("login=/login", {"login": "/login"}),
        ("cert=/c&key=/k", {"has_tls": True, "cert": "/c", "key": "/k"}),
        ("ca=/a%20b&login=/l&tls=yes", {"has_tls": True, "ca": "/a b", "login": "/l"}),
    ],
)
def test_options_name_files_and_ask_for_tls(query: str, options: dict[str, object]) -> None:
    assert parse_etcd_address(f"etcd://h?{query}") == EtcdAddress((("h", 2379),), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://h", "a catalog is at etcd://"),
        ("etcd://user:secret@h", "no user and password in the catalog's address"),
        ("etcd://", "a member of the catalog is"),
        ("etcd://a,,b", "a member of the catalog is"),
        ("etcd://h:0", "a member of the catalog is"),
        ("etcd://h:65536", "a member of the catalog is"),
        ("etcd://h:seven", "a member of the catalog is"),
        ("etcd://h:1:2", "a member of the catalog is"),
        ("etcd://h/path", "a member of the catalog is"),
        ("etcd://[::1", "a member of the catalog is"),
        ("etcd://[::1]7", "a member of the catalog is"),
        ("etcd://h:١", "a member of the catalog is"),
        ("etcd://" + ",".join(["h"] * (MEMBERS_MAX + 1)), "so many members"),
        ("etcd://h?nonesuch=/x", "unknown option"),
        ("etcd://h?ca=/x&ca=/y", "unknown option"),
        ("etcd://h?ca=relative", "begins with /"),
        ("etcd://h?ca=", "begins with /"),
        ("etcd://h?tls=no", "takes tls=yes"),
        ("etcd://h?cert=/c", "go together"),
        ("etcd://h?key=/k", "go together"),
    ],
)
def test_what_is_no_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        parse_etcd_address(text)
    assert "secret" not in str(caught.value)


def test_as_many_members_as_etcd_has_at_most_are_taken() -> None:
    assert len(parse_etcd_address("etcd://" + ",".join(["h"] * MEMBERS_MAX)).members) == MEMBERS_MAX
