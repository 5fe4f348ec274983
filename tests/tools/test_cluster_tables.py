"""Tables of a pool's nodes and of the vdisks in use."""

import pytest

from tests.tools.test_commands_top import vdisk
from tools.cluster_tables import print_nodes, print_vdisks


def test_tables_show_sessions_owners_and_lags(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        {"node": "a", "here": True, "session": "live", "address": "127.0.0.1:7", "vdisks_owned": 2},
        {"node": "b", "here": False, "session": "no session", "address": None, "vdisks_owned": 1},
    ]
    print_nodes(nodes)
    print_vdisks([vdisk(20, 7, handles=1, lag=2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["a*", "live", "127.0.0.1:7", "2"]
    assert lines[2].split()[:4] == ["b", "no", "session", "-"]
    assert lines[-1].split() == ["/20.img", "a", "b:", "2", "7", "4", "KiB", "1"]
