"""Addresses of object stores: which are some, and the one way of writing each. Pure."""

from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit

from metadata.errors import InvalidRequest

SCHEMES = ("s3", "gs", "az", "rados", "file", "memory")
"""``file`` and ``memory`` are stores on this machine, for tests and trials."""
_OPTIONS = ("endpoint", "region", "storage_class", "virtual_hosted_style_request")
_RADOS_OPTIONS = ("conf", "user")
"""What an address may say after a question mark; never a secret."""


def is_object_url(text: str) -> bool:
    """Whether this names an object store, not a directory."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme in SCHEMES


def is_rados_url(text: str) -> bool:
    """Whether this names a pool of a Ceph cluster."""
    return text.startswith("rados://")


def canonical_url(url: str, *, options: Iterable[tuple[str, str]] = ()) -> str:
    """The address with further options, without what means nothing.

    Raises:
        InvalidRequest: it is none of ours, has an option that is unknown, or a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise InvalidRequest(f"not the address of an object store: {exc}") from exc
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme in ("file", "memory")):
        raise InvalidRequest(
            f"not the address of an object store, like s3://bucket/prefix or rados://pool: {parts.scheme}://..."
        )
    if "@" in parts.netloc:
        raise InvalidRequest(
            "credentials do not belong into an address: put them into the environment or a file"
        )
    said = dict(parse_qsl(parts.query)) | {key: value for key, value in options if value}
    known = _RADOS_OPTIONS if parts.scheme == "rados" else _OPTIONS
    for name in said:
        if name not in known:
            raise InvalidRequest(
                f"an address like {parts.scheme}://... has no option {name!r}; there are {', '.join(known)}"
            )
    query = urlencode(sorted(said.items()))
    # Not urlunsplit: without a place it leaves the slashes out, and a directory's name would be left.
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}" + (f"?{query}" if query else "")
