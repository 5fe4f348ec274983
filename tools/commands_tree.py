"""The verb tree: vdisks, snapshots and clones as a table, JSON, a graph or a page."""

import argparse
import json
import os
import sys
import tempfile
from typing import Any

from metadata.errors import Exists
from tools.asking import ask
from tools.file_calls import rename_new
from tools.paths import Located, locate_mount
from tools.render import JSON_FORMAT, ProgressLine, print_table
from tools.tree_drawings import HEADER, dot_lines, table_rows
from tools.tree_nodes import SNAPSHOT, Node, read_nodes
from tools.tree_page import cells_for, tree_page

_PICTURES_AT_ONCE = 50


def tree(arguments: argparse.Namespace) -> int:
    """Show vdisks, snapshots and clones, and what they occupy."""
    located = locate_mount(arguments.path)
    if arguments.path is None:
        located = located.root()
    if arguments.html is not None and os.path.lexists(arguments.html):
        raise Exists(f"{arguments.html} exists: choose another name, or delete it first")
    with ProgressLine() as line:
        answer = ask(
            located,
            "tree",
            {"exact": arguments.exact or arguments.html is not None},
            progress=lambda news: line.show(f"counting: {news['done']} of {news['total']} vdisks"),
        )
    if arguments.json:
        _print_json(located.path, answer)
        return 0
    nodes = read_nodes(answer["nodes"])
    if arguments.dot:
        sys.stdout.writelines(
            f"{line}\n".encode("utf-8", "backslashreplace").decode() for line in dot_lines(nodes)
        )
    elif arguments.html is not None:
        _write_new(arguments.html, tree_page(nodes, _pictures(located, nodes)))
    elif nodes:
        header, *rows = _flush_left([[*HEADER], *table_rows(nodes)])
        print_table(header, rows)
    return 0


def _flush_left(rows: list[list[str]]) -> list[list[str]]:
    """The last column's words begin under each other."""
    width = max(len(row[-1]) for row in rows)
    return [[*row[:-1], row[-1].ljust(width)] for row in rows]


def _print_json(path: str, answer: dict[str, Any]) -> None:
    """The envelope, a node a line: there may be many."""
    nodes = ",\n    ".join(map(json.dumps, answer["nodes"]))
    head = json.dumps({"format": JSON_FORMAT, "path": path, "exact": answer["exact"]}, indent=2)
    sys.stdout.write(head.removesuffix("\n}") + f',\n  "nodes": [\n    {nodes}\n  ]\n}}\n')


def _pictures(located: Located, nodes: list[Node]) -> dict[int, dict[str, Any]]:
    vdisks = [node.id for node in nodes if node.kind != SNAPSHOT]
    found: dict[int, dict[str, Any]] = {}
    with ProgressLine() as line:
        for first in range(0, len(vdisks), _PICTURES_AT_ONCE):
            wanted = vdisks[first : first + _PICTURES_AT_ONCE]
            answer = ask(located, "pictures", {"vdisks": wanted, "cells": cells_for(len(vdisks))})
            found |= {int(vdisk): picture for vdisk, picture in answer["pictures"].items()}
            line.show(f"drawing: {first + len(wanted)} of {len(vdisks)} vdisks")
    return found


def _write_new(file: str, text: str) -> None:
    """A file with this text, whole or not at all, replacing nothing."""
    target = os.path.abspath(file)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=os.path.dirname(target), prefix=".vdiskfs-", suffix=".part", delete=False
    ) as page:
        try:
            page.write(text)
            page.flush()
            os.fchmod(page.fileno(), 0o644 & ~_umask())
            rename_new(page.name, target)
        except BaseException:
            os.unlink(page.name)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
