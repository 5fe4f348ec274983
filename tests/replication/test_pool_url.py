"""Addresses of object stores: one way of writing each, nothing unknown, nothing secret."""

import pytest

from metadata.errors import InvalidRequest
from replication.pool_url import SCHEMES, canonical_url, is_object_url


@pytest.mark.parametrize("scheme", SCHEMES)
def test_these_name_object_stores(scheme: str) -> None:
    assert is_object_url(f"{scheme}://place/prefix")
    assert not is_object_url(f"{scheme}:/place")


@pytest.mark.parametrize("text", ["/srv/pool", "pool", "http://x", "S3://x", "://x", ""])
def test_everything_else_is_a_directory_s_name(text: str) -> None:
    assert not is_object_url(text)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b//", "s3://bucket/a/b"),
        ("s3://bucket/a#part", "s3://bucket/a"),
        ("memory://", "memory://"),
        ("memory:///a/", "memory:///a"),
        ("file:///", "file://"),
        ("file:///srv/x/", "file:///srv/x"),
        ("s3://b?region=r&endpoint=http://h:1", "s3://b?endpoint=http%3A%2F%2Fh%3A1&region=r"),
        ("s3://b?region=", "s3://b"),
    ],
)
def test_each_place_has_one_address(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical
    assert is_object_url(canonical)


def test_an_option_told_besides_counts_if_it_says_something() -> None:
    assert canonical_url("s3://b?region=r", options=[("endpoint", "")]) == "s3://b?region=r"
    assert canonical_url("s3://b?region=r", options=[("region", "q")]) == "s3://b?region=q"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "like s3://bucket/prefix"),
        ("/srv/pool", "like s3://bucket/prefix"),
        ("ftp://h/x", "like s3://bucket/prefix"),
        ("s3://[", "not the address of an object store"),
        ("s3://KEY:SECRET@bucket/x", "credentials do not belong into an address"),
        ("s3://b?access_key=SECRET", "no option 'access_key'"),
    ],
)
def test_what_is_no_address_is_refused_and_no_secret_repeated(url: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        canonical_url(url)
    assert "SECRET" not in str(caught.value)
