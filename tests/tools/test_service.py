"""What ties vdiskfs into a machine: the systemd unit, its installation."""

import pathlib
import re

from fusefs import mounting
from fusefs.settings import KeeperSettings
from fusefs.systemd import STORED
from tools import cli

UNIT = pathlib.Path(cli.__file__).with_name("service") / "vdiskfs@.service"


def test_the_unit_gives_the_keeper_time_and_room_and_no_namespace() -> None:
    text = UNIT.read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    default_stop_s = KeeperSettings.__dataclass_fields__["stop_s"].default
    assert settings["Type"] == "notify"
    assert float(settings["TimeoutStopSec"].removesuffix("s")) > default_stop_s
    assert int(settings["FileDescriptorStoreMax"]) >= len(STORED)
    assert settings["KillMode"] == "process"
    assert mounting.FUSE_DEVICE in settings["DeviceAllow"]
    namespaces = {
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "ReadOnlyPaths",
    }
    assert not namespaces & set(settings)
    assert len(set(re.findall(r"^(\w+)=", text, re.MULTILINE)) - set(settings)) == 0


def test_the_unit_runs_commands_that_exist() -> None:
    for command in re.findall(r"^Exec\w+=@BIN@/vdiskfs (.*)$", UNIT.read_text(), re.MULTILINE):
        words = command.replace("$OPTIONS", "--node here").replace("${POOL}", "/srv/pool")
        words = words.replace("$CHANGEABLE", "--listen 10.0.0.1:7070 --cache 50G")
        cli.build_parser().parse_args(words.replace("${MOUNTPOINT}", "/mnt").split())
