"""A daemon among the other nodes of its pool: its credentials, its links and its session, for as long as it runs.

    enter: name -> certificate -> listener -> session -> tasks       leave: tasks, then the session if the node leaves

The tasks run before anything is recovered, which may take longer than a session lasts, and until all is at rest.
"""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fusefs.settings import NodeSettings, parse_listen
from metadata.catalog import Catalog
from replication.cluster import Member
from replication.credentials import ensure_credentials, read_identity
from replication.links import NodeLinks
from replication.pool_catalog import authority_folder
from replication.session import Session


@asynccontextmanager
async def among_nodes(
    settings: NodeSettings, catalog: Catalog, *, is_alone: bool
) -> AsyncIterator[tuple[NodeLinks, Session]]:
    """The node's links and its session, alive.

    Args:
        is_alone: the pool is locked under its name: no other node can bear it now.

    Raises:
        VdiskfsError: the node is not let in, and why; whatever the body raises, as it is.
    """
    host, port = parse_listen(settings.listen)
    identity = read_identity(settings.state)
    find = functools.partial(authority_folder, settings.pool, state=settings.state)
    folder = await trio.to_thread.run_sync(find)
    credentials = await ensure_credentials(catalog, node=settings.node, state=settings.state, folder=folder)
    async with NodeLinks(credentials, identity=identity, host=host, port=port) as links:
        member = Member(settings.node, host, links.port, identity)
        async with Session(catalog, member, is_alone=is_alone) as session:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.run)
                    nursery.start_soon(links.run, session)
                    yield links, session
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise _only(group) from None


def _only(raised: BaseException) -> BaseException:
    """The one error in a group of one: the nursery's wrapping says nothing more."""
    while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
        raised = raised.exceptions[0]
    return raised
