"""The verbs about whole mounts: format, mount, umount, status."""

import argparse
import errno
import os
import sys
from dataclasses import asdict

from fusefs import control_client, ending, launch, mount_table, registry, state_directory
from fusefs.mount_table import MountEntry
from fusefs.settings import LISTEN_DEFAULT, KeeperSettings
from metadata.errors import InvalidRequest, ReadOnly, Unavailable, VdiskfsError
from tools.cluster_tables import print_nodes, print_vdisks
from tools.paths import locate
from tools.render import ProgressLine, print_facts, print_json, print_table, readable

STATUS_TIMEOUT_S = 5.0


def format_pool(arguments: argparse.Namespace) -> int:
    """Make a directory a pool."""
    from replication import pools

    where = pools.resolve_pool(arguments.pool, endpoint=arguments.endpoint)
    pool = pools.format_pool(
        where, trash_s=arguments.trash, catalog=arguments.catalog, durability=arguments.durability
    )
    sys.stdout.write(f"formatted {pool.url}, pool {pool.pool_id}\n")
    pool.close()
    return 0


def mount(arguments: argparse.Namespace) -> int:
    """Mount a pool and return when it is served."""
    settings = _keeper_settings(arguments)
    if arguments.foreground:
        launch.become_keeper(settings)
    with ProgressLine() as line:
        launch.launch(settings, progress=line.show)
    _say_if_requests_are_lost(settings)
    return 0


def _say_if_requests_are_lost(settings: KeeperSettings) -> None:
    """Where the kernel cannot send requests again, a daemon's death costs those in flight."""
    try:
        os.statvfs(settings.mountpoint)  # answered only once the kernel has introduced itself
        control = registry.control_path(settings.runtime, settings.mountpoint)
        answer = control_client.call(control, "status", {}, timeout_s=STATUS_TIMEOUT_S)
    except (OSError, VdiskfsError):
        return  # it serves; that nobody may ask changes nothing
    if answer["kernel_resends"] is False:
        sys.stderr.write(
            f"vdiskfs: note: Linux {os.uname().release} does not resend requests (6.9 does): should the daemon die, "
            f"those in flight fail with an I/O error\n"
        )


def _keeper_settings(arguments: argparse.Namespace) -> KeeperSettings:
    from replication import pool_catalog, pools

    uid = os.geteuid()
    pool_path = pools.resolve_pool(arguments.pool, endpoint=arguments.endpoint)
    pool = pools.open_pool(pool_path)
    pool.close()
    if pool.tells_names and not os.access(pool_path, os.W_OK | os.X_OK):
        raise ReadOnly(f"the pool is read-only for this user: it must be writable path={pool_path}")
    if arguments.listen is None and pool_catalog.read_address(pool_path) is not None:
        raise InvalidRequest(
            "this pool's nodes may be on several machines: say where they call this one with --listen HOST[:PORT]"
        )
    mountpoint = mount_table.resolve(arguments.mountpoint, mount_table.read_mounts())
    node = arguments.node or state_directory.default_node(
        host=os.uname().nodename, mountpoint=mountpoint, pool_id=pool.pool_id
    )
    state = arguments.state or state_directory.default_folder(node, uid=uid, environment=os.environ)
    return KeeperSettings(
        pool=pool_path,
        mountpoint=mountpoint,
        node=node,
        state=os.path.realpath(state),
        runtime=registry.runtime_folder(uid, os.environ),
        options=tuple(arguments.options),
        daemon=launch.daemon_command(),
        listen=arguments.listen or LISTEN_DEFAULT,
        cache_bytes=arguments.cache,
    )


def umount(arguments: argparse.Namespace) -> int:
    """Unmount, and return when everything is flushed and the processes are gone."""
    mountpoint = mount_table.resolve(arguments.mountpoint, mount_table.read_mounts())
    ending.end_mount(mountpoint, timeout_s=arguments.timeout, force=arguments.force)
    return 0


def upgrade(arguments: argparse.Namespace) -> int:
    """Have this release serve a mount; returns when it does, or says who goes on and why."""
    entry = locate(arguments.mountpoint).root().entry
    before = locate(arguments.mountpoint).serving_record()
    if not before.keeper.is_alive():
        raise Unavailable(
            f"the mount on {entry.mountpoint} has lost its keeper, give it a new one first: "
            f"vdiskfs mount {entry.source} {entry.mountpoint}"
        )
    with ProgressLine() as line:
        launch.upgrade(
            before, listen=arguments.listen or "", cache_bytes=arguments.cache or 0, progress=line.show
        )
    after = launch.find_record(entry) or before
    facts = {
        "mountpoint": entry.mountpoint,
        "pid_before": before.pid,
        "pid": after.pid,
        "keeper_pid": after.keeper_pid,
        "pause_ms": after.last_pause_ms,
    }
    if arguments.json:
        print_json(facts)
    else:
        change = (
            f"daemon {before.pid} gave way to {after.pid}" if before.pid else f"daemon {after.pid} serves"
        )
        sys.stdout.write(
            f"upgraded {entry.mountpoint}: {change}, guests waited "
            f"{after.last_pause_ms} ms; its keeper {after.keeper_pid} stays\n"
        )
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Show one mount, or all."""
    if arguments.mountpoint is not None:
        facts = _facts(locate(arguments.mountpoint).entry, with_cluster=True)
        if arguments.json:
            print_json(facts)
        else:
            cluster = facts.pop("cluster", None)
            print_facts(facts)
            if isinstance(cluster, dict):
                sys.stdout.write("\n")
                print_nodes(cluster["nodes"])
                print_vdisks(cluster["vdisks"])
        return 0
    mounts = [_facts(entry) for entry in mount_table.read_mounts() if entry.is_vdiskfs]
    if arguments.json:
        print_json({"mounts": mounts})
    elif mounts:
        columns = ("mountpoint", "pool", "node", "service", "pid", "restarts")
        print_table(
            [name.upper() for name in columns],
            [[readable(name, facts.get(name)) for name in columns] for facts in mounts],
            left=4,
        )
    else:
        sys.stdout.write("nothing is mounted\n")
    return 0


def _facts(entry: MountEntry, *, with_cluster: bool = False) -> dict[str, object]:
    """What mount table, registry and daemon know about a mount; and all nodes about each other."""
    facts: dict[str, object] = {"mountpoint": entry.mountpoint, "pool": entry.source, "service": "unknown"}
    record = launch.find_record(entry)
    if record is None:
        return facts
    facts |= asdict(record)
    for private in ("keeper_started", "pid_started", "ended", "serving"):
        del facts[private]
    if not record.is_alive():
        return facts | {"service": "dead"}
    facts["service"] = "serving" if record.serving else "starting" if record.pid else "waiting"
    if not record.keeper.is_alive():
        facts["keeper"] = f"gone: 'vdiskfs mount {record.pool} {record.mountpoint}' gives the mount a new one"
    if not record.pid:
        facts["problem"] = "no daemon serves this mount, and another is started soon: see the last error"
        return facts | {"requests_to_owners": 0}
    try:
        answer = control_client.call(
            record.control, "status", {"cluster": with_cluster}, timeout_s=STATUS_TIMEOUT_S
        )
        facts |= {key: value for key, value in dict(answer).items() if key not in ("pid", "keeper_pid")}
    except VdiskfsError as problem:
        if record.serving and problem.number != errno.EPERM:
            facts["service"] = "not answering"
        facts["problem"] = str(problem)
    facts.setdefault("requests_to_owners", 0)  # one node asks nobody
    return facts
