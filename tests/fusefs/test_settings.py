"""What a keeper and a daemon are told: addresses to listen on."""

import pytest

from fusefs.settings import LISTEN_DEFAULT, parse_listen


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (LISTEN_DEFAULT, ("127.0.0.1", 0)),
        ("host.example", ("host.example", 0)),
        ("10.0.0.1:7070", ("10.0.0.1", 7070)),
        ("[fd00::1]:7070", ("fd00::1", 7070)),
        ("[fd00::1]", ("fd00::1", 0)),
        ("fd00::1", ("fd00::1", 0)),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address
