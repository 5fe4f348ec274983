"""The verbs about ownership: owner show, owner take."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from tools.asking import ask
from tools.paths import locate
from tools.render import print_json


def show(arguments: argparse.Namespace) -> int:
    """Say which node may write a vdisk."""
    _tell(arguments, ask(locate(arguments.path), "owner_show", {}))
    return 0


def take(arguments: argparse.Namespace) -> int:
    """Make the node of this mount the owner."""
    _tell(arguments, ask(locate(arguments.path), "owner_take", {"force": arguments.force}))
    return 0


def _tell(arguments: argparse.Namespace, answer: Mapping[str, Any]) -> None:
    if arguments.json:
        print_json({**answer, "path": arguments.path})
    elif not answer["node"]:
        sys.stdout.write(f"{arguments.path} has no owner yet: whoever writes it first is\n")
    else:
        gone = "" if answer["live"] else ", which is not there: whoever writes it next takes it over"
        here = " (this node)" if answer["here"] else ""
        sys.stdout.write(
            f"{arguments.path} is owned by {answer['node']}{here}, epoch {answer['epoch']}{gone}\n"
        )
