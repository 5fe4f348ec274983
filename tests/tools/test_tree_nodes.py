"""The snapshot tree's nodes in the order in which they are drawn."""

from tests.tools.fake_tree import SMALL
from tools.tree_nodes import in_order, read_nodes


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


def test_a_list_that_goes_round_in_circles_ends() -> None:
    nodes = read_nodes([{"id": 5, "kind": "vdisk", "parent": 6}, {"id": 6, "kind": "vdisk", "parent": 5}])
    assert list(in_order(nodes)) == []
    assert len(list(in_order(read_nodes([{"id": 5, "kind": "vdisk", "parent": 5}])))) == 1
