"""The snapshot tree drawn: in order, in a terminal, as a graph, as a page."""

import base64
import json
import re
from typing import Any

import pytest

from metadata.block_pictures import cell_of, count_jumps, count_row, encode_cells
from metadata.ids import HOLE, PARENT
from metadata.rows import uniform_row
from tests.tools.fake_tree import fake_maps, fake_nodes
from tools.tree_drawings import HEADER, dot_lines, table_rows
from tools.tree_nodes import in_order, read_nodes
from tools.tree_page import CELLS_MAX, CELLS_MIN, cells_for, tree_page

SMALL: list[dict[str, Any]] = [
    {
        "id": 16,
        "kind": "vdisk",
        "path": "/b.img",
        "version": 9,
        "parent": None,
        "size": 1 << 30,
        "own_bytes": 4096,
    },
    {"id": 20, "kind": "snapshot", "name": "two", "version": 7, "parent": 16, "protected": True},
    {"id": 21, "kind": "snapshot", "name": "one", "version": 3, "parent": 16, "open_handles": 2},
    {"id": 30, "kind": "vdisk", "path": "/clone", "version": 1, "parent": 21, "exclusive_bytes": 8192},
    {"id": 31, "kind": "vdisk", "path": "/another", "version": 1, "parent": 21, "shared_bytes": 0},
    {"id": 40, "kind": "nameless", "path": None, "version": 2, "parent": None},
    {"id": 41, "kind": "vdisk", "path": "/of-the-head", "version": 2, "parent": 16},
    {"id": 42, "kind": "trash", "path": "/gone", "version": 2, "parent": 999},
    {"id": 43, "kind": "vdisk", "path": "/a.img", "parent": None},
]


def a_chain(length: int) -> list[dict[str, Any]]:
    """Clones of clones."""
    return [
        {"id": 16 + n, "kind": "vdisk", "path": f"/{n:05d}", "parent": 15 + n if n else None}
        for n in range(length)
    ]


def test_parents_come_first_then_snapshots_by_version_then_clones_by_path() -> None:
    order = [(drawn.node.label(), drawn.depth) for drawn in in_order(read_nodes(SMALL))]
    assert order == [
        ("/a.img", 0),
        ("/b.img", 0),
        ("@one", 1),
        ("/another", 2),
        ("/clone", 2),
        ("@two", 1),
        ("/of-the-head", 1),
        ("/gone (trash)", 0),
        ("(deleted, vdisk 40)", 0),
    ]


def test_the_terminal_shows_lines_figures_and_holders() -> None:
    rows = {row[0]: row for row in table_rows(read_nodes(SMALL))}
    assert all(len(row) == len(HEADER) for row in rows.values())
    assert list(rows)[1:7] == [
        "/b.img",
        "├─ @one",
        "│  ├─ /another",
        "│  └─ /clone",
        "├─ @two",
        "└─ /of-the-head",
    ]
    assert rows["├─ @one"][-1] == "2 clones, 2 open"
    assert rows["├─ @two"][-1] == "protected"
    assert rows["/b.img"][-1] == "1 clone"
    assert rows["│  └─ /clone"][5:7] == ["8 KiB", "-"]
    assert rows["│  ├─ /another"][5:7] == ["-", "0 B"]


def test_a_chain_of_clones_is_drawn_however_deep() -> None:
    rows = [row[0] for row in table_rows(read_nodes(a_chain(5000)))]
    assert rows[1] == "└─ /00001"
    assert re.fullmatch(r"\[4999\] +└─ /04999", rows[-1])
    assert max(map(len, rows)) < 60
    assert len(tree_page(read_nodes(a_chain(5000)), {})) < 1 << 20


def test_a_list_that_goes_round_in_circles_ends() -> None:
    nodes = read_nodes([{"id": 5, "kind": "vdisk", "parent": 6}, {"id": 6, "kind": "vdisk", "parent": 5}])
    assert list(in_order(nodes)) == []
    assert len(list(in_order(read_nodes([{"id": 5, "kind": "vdisk", "parent": 5}])))) == 1


def test_the_graph_has_every_node_and_no_quote_that_ends_a_label() -> None:
    odd = {"id": 50, "kind": "vdisk", "path": '/x"];\n\\y', "parent": 30}
    lines = list(dot_lines(read_nodes([*SMALL, odd])))
    assert lines[0] == "digraph vdisks {"
    assert lines[-1] == "}"
    assert [line for line in lines if line.startswith("  n21 ->")] == [
        "  n21 -> n31 [style=dashed];",
        "  n21 -> n30 [style=dashed];",
    ]
    assert "  n16 -> n20 [penwidth=2, arrowhead=none];" in lines
    (label,) = [line for line in lines if line.startswith("  n50 [")]
    assert label.startswith('  n50 [label="/x\\"];\\\\n\\\\y\\nversion')


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


def test_a_cell_shows_the_least_share_and_never_more_than_all() -> None:
    assert cell_of(0, 0, 256) == (0, 0, 0)
    assert cell_of(256, 0, 256) == (15, 0, 0)
    assert cell_of(1, 255, 256) == (1, 14, 0)
    assert cell_of(1, 1, 1 << 30, jumps=1, counted=1) == (1, 1, 255)
    for own in range(0, 257, 8):
        assert sum(cell_of(own, 256 - own, 256)[:2]) == 15


def test_rows_are_counted_and_their_jumps() -> None:
    row = uniform_row(HOLE)
    row[3:9] = row[3:9].__class__("Q", [900, 901, 902, PARENT, 950, 951])
    assert count_row(row) == (5, 1)
    assert count_jumps(row) == 2
    assert count_jumps(row.__class__("Q", range(700, 956))) == 0


def test_equal_cells_are_told_once() -> None:
    assert encode_cells([(1, 2, 3)] * 300 + [(0, 0, 0)]) == bytes([255, 0x12, 3, 45, 0x12, 3, 1, 0, 0])
    assert encode_cells([]) == b""
    assert base64.b64encode(encode_cells([(15, 0, 0)])) == b"AfAA"
