"""Asking the daemon behind a path: one verb, its answer, its progress."""

from collections.abc import Callable, Mapping
from typing import Any

from fusefs import control_client
from metadata.errors import InvalidRequest
from tools.paths import Located


def ask(
    located: Located,
    verb: str,
    arguments: Mapping[str, object],
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """The answer of the daemon that serves ``located``; its path goes along as ``path`` unless another is given.

    Raises:
        VdiskfsError: what the daemon raised, or why it cannot be asked.
    """
    record = located.serving_record()
    return control_client.call(record.control, verb, {"path": located.inner, **arguments}, progress=progress)


def check_same_mount(first: Located, second: Located) -> None:
    """One daemon must do it.

    Raises:
        InvalidRequest: they lie under different mounts.
    """
    if first.entry.mountpoint != second.entry.mountpoint:
        raise InvalidRequest(f"{first.path} and {second.path} lie under different mounts: give paths of one")
