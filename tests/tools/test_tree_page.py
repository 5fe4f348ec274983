"""The snapshot tree as one page that asks nobody for anything."""

import json
import re
from typing import Any

import pytest

from tests.tools.fake_tree import SMALL, fake_maps, fake_nodes
from tools.tree_nodes import read_nodes
from tools.tree_page import CELLS_MAX, CELLS_MIN, cells_for, tree_page


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("count", [0, 5, 5000])
def test_the_page_holds_the_whole_tree_and_asks_nobody(count: int) -> None:
    nodes = fake_nodes(count)
    maps = fake_maps(nodes)
    page = tree_page(read_nodes(nodes), maps)
    data = data_of(page)
    assert len(data["nodes"]) == count
    assert set(data["maps"]) == {str(vdisk) for vdisk in maps}
    assert {row[0] for row in data["nodes"]} == {node["id"] for node in nodes}
    assert re.findall(r"(?:https?:)?//[a-z]", page.replace("</", "")) == []
    assert "default-src 'none'" in page
    assert len(page) < 4 << 20


def test_a_name_cannot_leave_the_page_s_data() -> None:
    page = tree_page(read_nodes([{"id": 5, "kind": "vdisk", "path": "/</script><b>\x1b[31m\udcff"}]), {})
    assert page.count("</script>") == 2
    assert data_of(page)["nodes"][0][2] == "/</script><b>\\x1b[31m\\udcff"


def test_a_snapshot_is_found_by_its_vdisk_s_name_too() -> None:
    fields = (data := data_of(tree_page(read_nodes(SMALL), {})))["fields"]
    full = {row[0]: row[fields.index("full")] for row in data["nodes"]}
    assert (full[20], full[30]) == ("/b.img@two", "/clone")


def test_pictures_of_many_vdisks_are_coarser() -> None:
    assert (cells_for(0), cells_for(1), cells_for(5000), cells_for(10**6)) == (
        CELLS_MAX,
        CELLS_MAX,
        419,
        CELLS_MIN,
    )
