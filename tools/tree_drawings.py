"""The snapshot tree as lines for a terminal, and as a graph in Graphviz's language."""

from collections.abc import Iterator, Sequence

from tools.render import format_time
from tools.sizes import format_size
from tools.tree_nodes import NAMELESS, SNAPSHOT, TRASH, VDISK, Node, in_order, prefix

DEPTH_DRAWN_MAX = 12
HEADER = ("NAME", "VERSION", "TIME", "SIZE", "OWN", "EXCLUSIVE", "SHARED", "HELD BY")
_STYLES = {
    VDISK: 'shape=box, style="rounded,filled", fillcolor="#dbe9f6"',
    SNAPSHOT: 'shape=box, style=filled, fillcolor="#f5f0dc"',
    NAMELESS: "shape=box, style=dashed",
    TRASH: "shape=box, style=dashed, color=gray",
}


def table_rows(nodes: Sequence[Node]) -> Iterator[list[str]]:
    """A row of the terminal's table for each node, in order."""
    for drawn in in_order(nodes):
        node = drawn.node
        yield [
            prefix(drawn, depth_max=DEPTH_DRAWN_MAX) + node.label(),
            str(node.version),
            format_time(node.time_ns),
            format_size(node.size),
            format_size(node.own_bytes),
            _known(node.exclusive_bytes),
            _known(node.shared_bytes),
            node.holders(),
        ]


def dot_lines(nodes: Sequence[Node]) -> Iterator[str]:
    """A digraph: snapshots hang on their vdisks by thick lines, clones on what they were made of by dashed ones."""
    yield "digraph vdisks {"
    yield "  rankdir=LR; node [fontname=sans, fontsize=10];"
    known = {node.id for node in nodes}
    for drawn in in_order(nodes):
        node = drawn.node
        facts = [f"version {node.version}", format_size(node.size), f"own {format_size(node.own_bytes)}"]
        if node.exclusive_bytes is not None:
            facts.append(f"exclusive {format_size(node.exclusive_bytes)}")
        lines = [node.label(), ", ".join(facts), *filter(None, [node.holders()])]
        label = "\\n".join(_escaped(line) for line in lines)
        yield f'  n{node.id} [label="{label}", {_STYLES.get(node.kind, _STYLES[VDISK])}];'
        if node.parent is not None and node.parent in known:
            line = "penwidth=2, arrowhead=none" if node.kind == SNAPSHOT else "style=dashed"
            yield f"  n{node.parent} -> n{node.id} [{line}];"
    yield "}"


def _known(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _escaped(text: str) -> str:
    """As it may stand between a label's quotes."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown.replace("\\", "\\\\").replace('"', '\\"')
