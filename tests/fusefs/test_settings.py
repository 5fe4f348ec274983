"""What a keeper and a daemon are told: there and back, of these kinds and no other; addresses to listen on."""

import json

import pytest

from fusefs.settings import LISTEN_DEFAULT, KeeperSettings, UpgradeSettings, parse_listen
from metadata.errors import InvalidRequest

WHOLE = KeeperSettings(
    pool="/pool",
    mountpoint="/mnt",
    node="a",
    state="/state",
    runtime="/run",
    options=("ro",),
    daemon=("python", "-m"),
)


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


def test_settings_are_the_same_there_and_back() -> None:
    assert KeeperSettings.from_json(WHOLE.to_json()) == WHOLE
    assert KeeperSettings.from_json(json.dumps(json.loads(WHOLE.to_json()) | {"stop_s": 5})).stop_s == 5


@pytest.mark.parametrize(
    "change",
    [
        {"pool": 5},
        {"pool": None},
        {"pool": ["/pool"]},
        {"options": "ro"},
        {"options": None},
        {"daemon": "python"},
        {"daemon": ["python", 5]},
        {"daemon": {"python": 1}},
        {"ready_fd": "3"},
        {"ready_fd": True},
        {"take_over": 1},
        {"stop_s": "60"},
        {"stop_s": False},
        {"unheard": 1},
    ],
)
def test_a_value_of_another_kind_is_refused_before_anybody_uses_it(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="settings do not match"):
        KeeperSettings.from_json(json.dumps(json.loads(WHOLE.to_json()) | change))


@pytest.mark.parametrize("text", ["", "5", "[]", "null", "{}", '{"pythonpath": ""}', "{" * 5000])
def test_what_is_no_object_with_all_that_is_needed_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="settings"):
        UpgradeSettings.from_json(text)
