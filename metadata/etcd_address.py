"""Where an etcd cluster is, and how to talk to it: the words of ``etcd://host:port,host:port?ca=...``, pure.

    etcd://HOST[:PORT],...            the members' client addresses; port 2379 unless told
        ?ca=FILE                      TLS, the members' certificates signed by this authority
        &tls=yes                      TLS, by the authorities this machine trusts
        &cert=FILE&key=FILE           this node's certificate, if the members ask for one
        &login=FILE                   a file with one line USER:PASSWORD

A password never stands in the address itself, because the pool remembers that.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from metadata.errors import InvalidRequest

SCHEME = "etcd://"
PORT_DEFAULT = 2379
MEMBERS_MAX = 16
_PORT = re.compile("[0-9]{1,5}")
_OPTIONS = ("ca", "tls", "cert", "key", "login")


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """An etcd cluster's members, and the files that it takes to be let in."""

    members: tuple[tuple[str, int], ...]
    has_tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    login: str = ""


def parse_etcd_address(text: str) -> EtcdAddress:
    """The address in ``text``.

    Raises:
        InvalidRequest: it is none; the message does not repeat what may be a password.
    """
    if not text.startswith(SCHEME):
        raise InvalidRequest("a catalog is at etcd://HOST:PORT,HOST:PORT")
    place, _, query = text[len(SCHEME) :].partition("?")
    if "@" in place:
        raise InvalidRequest(
            "no user and password in the catalog's address, which the pool keeps: write USER:PASSWORD into a file and "
            "add ?login=FILE, or set VDISKFS_ETCD_LOGIN"
        )
    members = tuple(_member(one) for one in place.rstrip("/").split(","))
    if len(members) > MEMBERS_MAX:
        raise InvalidRequest(f"so many members has no etcd cluster count={len(members)} max={MEMBERS_MAX}")
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS or name in options:
            known = ", ".join(_OPTIONS)
            raise InvalidRequest(
                f"unknown option of the catalog's address option={name!r}; there are {known}, each once"
            )
        if name == "tls" and value != "yes":
            raise InvalidRequest("the catalog's address takes tls=yes, or no tls at all")
        if name != "tls" and not value.startswith("/"):
            raise InvalidRequest(
                f"a file in the catalog's address begins with / for every node to find it option={name}"
            )
        options[name] = value
    if ("cert" in options) != ("key" in options):
        raise InvalidRequest("cert and key in the catalog's address go together")
    has_tls = bool(options.keys() & {"ca", "tls", "cert"})
    options.pop("tls", None)
    return EtcdAddress(members, has_tls, **options)


def _member(text: str) -> tuple[str, int]:
    host, port = text, str(PORT_DEFAULT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            host = ""
        port = rest[1:] or port
    else:
        host, _, given = text.partition(":")
        port = given or port
    if not host or "/" in host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise InvalidRequest(
            f"a member of the catalog is HOST, HOST:PORT or [ADDRESS]:PORT, not member={text!r}"
        )
    return host, int(port)
