"""The snapshot tree drawn in a terminal and as a graph."""

import re
from typing import Any

from tests.tools.fake_tree import SMALL
from tools.tree_drawings import HEADER, dot_lines, table_rows
from tools.tree_nodes import read_nodes
from tools.tree_page import tree_page


def a_chain(length: int) -> list[dict[str, Any]]:
    """Clones of clones."""
    return [
        {"id": 16 + n, "kind": "vdisk", "path": f"/{n:05d}", "parent": 15 + n if n else None}
        for n in range(length)
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
