"""Two ends of one TLS connection between two nodes of a new cluster, in one process."""

import pathlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from replication.secure_stream import SecureStream, secure_context
from tests.replication.linked_nodes import join


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: who dialled, and who was dialled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialling = socket.create_connection(listener.getsockname())
        dialled, _ = listener.accept()
    return dialling, dialled


@asynccontextmanager
async def secured_pair(folder: pathlib.Path) -> AsyncIterator[tuple[SecureStream, SecureStream]]:
    """Node "one", which dialled, and node "two", after their handshake; nobody runs them yet."""
    one, two = await join(folder, "one", "two")
    dialling, dialled = connected()
    calling = SecureStream(dialling, secure_context(one, answers=False), answers=False)
    answering = SecureStream(dialled, secure_context(two, answers=True), answers=True)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calling.shake_hands)
            nursery.start_soon(answering.shake_hands)
        yield calling, answering
    finally:
        calling.close()
        answering.close()
