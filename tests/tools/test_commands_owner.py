"""owner show, owner take: what is asked and how the answer is said."""

import json

import pytest

from metadata.errors import Busy
from tests.tools.pretended_daemon import PretendedDaemon

HERE = {"path": "/a.img", "vdisk": 20, "node": "a", "epoch": 3, "here": True, "live": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "is owned by a (this node), epoch 3"),
        ({"node": "b", "here": False}, "is owned by b, epoch 3"),
        (
            {"node": "b", "here": False, "live": False},
            "is owned by b, epoch 3, which is not there: whoever writes it next takes it over",
        ),
        ({"node": None, "here": False, "live": False}, "has no owner yet: whoever writes it first is"),
    ],
)
def test_the_owner_is_said_in_a_sentence(
    change: dict[str, object], words: str, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("owner_show", HERE | change)
    assert daemon.run("owner", "show", "/a.img") == 0
    assert capsys.readouterr().out == f"{daemon.mountpoint}/a.img {words}\n"
    assert daemon.asked == [("owner_show", {"path": "a.img"})]


@pytest.mark.parametrize("force", [False, True])
def test_taking_says_whether_by_force(
    force: bool, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("owner_take", HERE)
    assert daemon.run("owner", "take", "/a.img", "--json", *["--force"] * force) == 0
    assert json.loads(capsys.readouterr().out) == {
        "format": 1,
        **HERE,
        "path": f"{daemon.mountpoint}/a.img",
    }
    assert daemon.asked == [("owner_take", {"path": "a.img", "force": force})]


def test_what_is_refused_is_one_line(daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.says("owner_take", Busy("the vdisk is being written on its owner node=b"))
    assert daemon.run("owner", "take", "/a.img") == 1
    assert capsys.readouterr().err == "vdiskfs: the vdisk is being written on its owner node=b\n"
