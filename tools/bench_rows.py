"""What the benchmark measures: its rows, the targets they must reach, and how long each may take.

A row is one line of the table. Rows that share a ``Stage`` run on the same images, one after another, with
every contender started anew and filled the same way before the first; so no row inherits another stage's dead
data, and the disk space in use stays bounded. Throughput rows count work done (more is better) and are judged
by their ratio to another contender; the rest are costs (less is better) judged against a limit.
"""

import dataclasses
import enum
import fnmatch

from metadata.errors import InvalidRequest
from tools.bench_fio import Job

OURS = "vdiskfs"
RAW = "raw"
QCOW2 = "qcow2"
QEMU_RAW = "qemu-raw"
OWNER, LOCAL, FORWARDED = "owner", "local", "forwarded"
DIRECTORY, CLIENT = "directory", "client"
"""What nodes are compared with, measured in the same rounds: no contenders of their own."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SCRATCH_BYTES_MAX = 20 * GIB
"""No stage may plan for more: the benchmark is run on people's own disks."""

SCRATCH_RESERVE_BYTES = GIB
"""Left free besides what a stage plans for: logs, indexes, and whoever else uses the disk."""


VDISK_BYTES_MIN = 64 * KIB
"""What a vdisk with one written block may take."""


class Stage(enum.Enum):
    """Rows of one stage share their images."""

    READ = "read"
    RANDOM_WRITE = "random write"
    SEQUENTIAL_AND_FLUSHED_WRITE = "sequential write, and writes with fdatasync"
    BUFFERED_RANDOM_WRITE = "buffered random write"
    BUFFERED_SEQUENTIAL_WRITE = "buffered sequential write"
    CPU_WRITE = "cpu write"
    MEMORY = "memory"
    INDEX_SEQUENTIAL = "index sequential"
    INDEX_RANDOM = "index random"
    MOUNT = "mount"
    HISTORY = "snapshots, clones, rollbacks, deletions"
    DIFF = "diff"
    TREE = "tree"
    SNAPSHOT_CHAIN = "reads behind snapshots"
    CLONE_CHAIN = "reads through clones"
    COLLECTION = "collection"
    PAUSES = "pauses"
    NODES = "several nodes"
    OBJECTS = "object stores"


class Measure(enum.Enum):
    """What a sample's number is; the value is its unit in the report."""

    IOPS = "IOPS"
    MEGABYTES_PER_S = "MB/s"
    CPU_US = "us/op"
    MEMORY_MIB = "MiB"
    OBJECTS_PER_GIB = "/GiB"
    INDEX_PERCENT = "%"
    SECONDS = "s"
    VERB_MS = "ms"
    SLOWER_PERCENT = "% less"
    TIMES = "times"


HISTORY_STAGES = frozenset({Stage.HISTORY, Stage.DIFF, Stage.TREE})
CHAIN_STAGES = frozenset({Stage.SNAPSHOT_CHAIN, Stage.CLONE_CHAIN})
"""Each of their rows starts vdiskfs anew, and makes what it is compared with itself."""

MORE_IS_BETTER = frozenset({Measure.IOPS, Measure.MEGABYTES_PER_S})


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """At least ``bound`` times the figure of ``against``; with nobody to compare to, at most ``bound``."""

    bound: float
    against: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Without a target it is there to be read, not to be judged."""

    name: str
    title: str
    stage: Stage
    measure: Measure
    target: Target | None = None
    job: Job | None = None
    overwritten: bool = False
    is_quick: bool = True
    """Whether --quick runs it without being asked to."""

    def __post_init__(self) -> None:
        assert self.target is None or (self.target.against is not None) == (self.measure in MORE_IS_BETTER)


PAUSE_WRITTEN_PART = 64
"""Of this many blocks one is written, here and there: all rows of the index are there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. ``seconds`` and ``image_bytes`` bound a sample: whichever is reached first.

    ``shared_images``: all rows that run a job share one stage, where disk space and dead data do not matter.
    """

    rounds: int
    seconds: float
    image_bytes: int
    cpu_operations: int
    memory_vdisk_bytes: int
    memory_written_bytes: int
    mount_vdisks: int
    mount_bytes: int
    mapped_bytes: int
    pause_bytes: int
    verb_rounds: int
    tree_nodes: int
    flushes: int
    chain_bytes: int
    chain_depths: tuple[int, ...]
    shared_images: bool


FULL = Plan(
    rounds=3,
    seconds=1.0,
    image_bytes=GIB,
    cpu_operations=100_000,
    memory_vdisk_bytes=TIB,
    memory_written_bytes=8 * GIB,
    mount_vdisks=10_000,
    mount_bytes=64 * GIB,
    mapped_bytes=64 * GIB,
    pause_bytes=100 * GIB,
    verb_rounds=15,
    tree_nodes=5000,
    flushes=300,
    chain_bytes=256 * MIB,
    chain_depths=(1, 10, 100, 1000),
    shared_images=False,
)

QUICK = Plan(
    rounds=1,
    seconds=0.05,
    image_bytes=32 * MIB,
    cpu_operations=4_000,
    memory_vdisk_bytes=TIB,
    memory_written_bytes=32 * MIB,
    mount_vdisks=100,
    mount_bytes=GIB,
    mapped_bytes=GIB,
    pause_bytes=GIB,
    verb_rounds=2,
    tree_nodes=50,
    flushes=20,
    chain_bytes=16 * MIB,
    chain_depths=(1, 5),
    shared_images=True,
)

_RANDOM_READ_1 = Job(rw="randread", block_bytes=4 * KIB, depth=1)
RANDOM_READ_16 = Job(rw="randread", block_bytes=4 * KIB, depth=16)
_SEQUENTIAL_READ = Job(rw="read", block_bytes=MIB, depth=4)
_BUFFERED_READ = Job(rw="randread", block_bytes=4 * KIB, depth=1, direct=False)
_RANDOM_WRITE_1 = Job(rw="randwrite", block_bytes=4 * KIB, depth=1)
RANDOM_WRITE_16 = Job(rw="randwrite", block_bytes=4 * KIB, depth=16)
SEQUENTIAL_WRITE = Job(rw="write", block_bytes=MIB, depth=4)
_BUFFERED_RANDOM_WRITE = Job(rw="randwrite", block_bytes=4 * KIB, depth=1, direct=False)
_BUFFERED_SEQUENTIAL_WRITE = Job(rw="write", block_bytes=MIB, depth=1, direct=False)
FORWARDED_READ_16 = dataclasses.replace(RANDOM_READ_16, opens_for_writing=True)
FORWARDED_WRITES = {"qd1": _RANDOM_WRITE_1, "qd16": RANDOM_WRITE_16}
LOCAL_WRITES = {
    depth: dataclasses.replace(job, fdatasync_each=True) for depth, job in FORWARDED_WRITES.items()
}


def _read_rows(*, overwritten: bool) -> tuple[Row, ...]:
    """The read rows, on a freshly written image or on one that was then overwritten in random order."""
    prefix = "overwritten-" if overwritten else ""
    suffix = ", overwritten image" if overwritten else ""
    table = (
        ("randread-qd1", "4 KiB randread O_DIRECT QD1", Measure.IOPS, Target(1.0, QCOW2), _RANDOM_READ_1),
        ("randread-qd16", "4 KiB randread O_DIRECT QD16", Measure.IOPS, Target(2.0, QCOW2), RANDOM_READ_16),
        (
            "seqread-qd4",
            "1 MiB sequential read O_DIRECT QD4",
            Measure.MEGABYTES_PER_S,
            Target(0.5 if overwritten else 1.0, QCOW2),
            _SEQUENTIAL_READ,
        ),
        ("buffered-randread", "4 KiB randread, cached", Measure.IOPS, Target(0.9, RAW), _BUFFERED_READ),
    )
    return tuple(
        Row(prefix + name, title + suffix, Stage.READ, measure, target, job, overwritten)
        for name, title, measure, target, job in table
    )


def _history_rows() -> tuple[Row, ...]:
    """What one verb costs, on a vdisk with little and with much in it."""
    sizes = (("small", "1 MiB"), ("large", "64 GiB"))
    return tuple(
        Row(f"{verb}-{name}", f"{what}, {size} mapped", Stage.HISTORY, Measure.VERB_MS, Target(20))
        for verb, what in (
            ("snapshot", "a snapshot is made"),
            ("clone", "a clone is made"),
            ("rollback", "a vdisk is rolled back"),
            ("delete", "a snapshot is deleted"),
        )
        for name, size in sizes
    )


def _chain_rows() -> tuple[Row, ...]:
    """Reads at depth: how much slower than at depth 1 at worst, and how fast against a qcow2 chain."""
    return (
        Row(
            "behind-snapshots",
            "4 KiB randread O_DIRECT QD16 behind 1,000 snapshots, against a chain of 1,000 overlays",
            Stage.SNAPSHOT_CHAIN,
            Measure.IOPS,
            Target(3.0, QCOW2),
            is_quick=False,
        ),
        Row(
            "snapshots-slow-down",
            "the same behind 1 to 1,000 snapshots: the most that is lost",
            Stage.SNAPSHOT_CHAIN,
            Measure.SLOWER_PERCENT,
            Target(10),
        ),
        Row(
            "clones-slow-down",
            "the same through 1 to 1,000 generations of clones, second pass: the most that is lost",
            Stage.CLONE_CHAIN,
            Measure.SLOWER_PERCENT,
            Target(10),
        ),
    )


def _node_rows() -> tuple[Row, ...]:
    """Several nodes, all on this machine."""
    table = (
        (
            "peer-randread",
            "4 KiB randread O_DIRECT QD16 on a peer, against the owner",
            Measure.IOPS,
            Target(0.9, OWNER),
        ),
        (
            "local-reads",
            "the same on a peer, against reads that ask the owner (opened for writing while the owner writes)",
            Measure.IOPS,
            Target(5.0, FORWARDED),
        ),
        (
            "forwarded-write-qd1",
            "4 KiB randwrite O_DIRECT QD1 forwarded to the owner, against write + fdatasync on the owner",
            Measure.IOPS,
            Target(0.5, LOCAL),
        ),
        ("forwarded-write-qd16", "the same at QD16", Measure.IOPS, Target(0.5, LOCAL)),
        (
            "fsync-visible-p50",
            "fsync to visible on a peer, over a loopback round trip and an fdatasync, medians",
            Measure.TIMES,
            Target(2),
        ),
        ("fsync-visible-p99", "the same, 99th percentiles", Measure.TIMES, Target(5)),
        ("flush-subscribers", "fsync with 16 subscribed nodes over one with 1", Measure.TIMES, Target(3)),
        (
            "flush-unfollowed",
            "fsync of what nobody follows beside another node over one alone",
            Measure.TIMES,
            Target(1.1),
        ),
        (
            "hand-over",
            "open for writing of an idle vdisk that another node owns",
            Measure.VERB_MS,
            Target(50),
        ),
        ("takeover", "the same of a dead node's, from its lease's end", Measure.VERB_MS, Target(500)),
        ("node-mount", "a second node's mount, 10,000 vdisks known, none used", Measure.SECONDS, Target(2.0)),
        ("node-memory", "its daemon's resident memory", Measure.MEMORY_MIB, Target(150)),
    )
    return tuple(Row(name, title, Stage.NODES, measure, target) for name, title, measure, target in table)


def _object_rows() -> tuple[Row, ...]:
    """Rows about pools in object stores (tools/bench_objects.py)."""
    throughput = Measure.MEGABYTES_PER_S
    table = (
        ("object-second-read", "an image read again by a node", throughput, Target(0.95, DIRECTORY)),
        ("object-first-read", "an image read first by a node", throughput, Target(0.9, CLIENT)),
        ("object-node-flush", "4 KiB write + fdatasync, QD1, on node", Measure.IOPS, Target(0.9, DIRECTORY)),
        ("object-count", "objects after flushes of 4 KiB", Measure.OBJECTS_PER_GIB, Target(64)),
    )
    return tuple(
        Row(name, title, Stage.OBJECTS, measure, target, is_quick=False)
        for name, title, measure, target in table
    )


ROWS: tuple[Row, ...] = (
    *_read_rows(overwritten=False),
    Row(
        "cpu-read",
        "daemon's CPU, 4 KiB randread O_DIRECT QD16",
        Stage.READ,
        Measure.CPU_US,
        Target(10),
        RANDOM_READ_16,
    ),
    *_read_rows(overwritten=True),
    Row(
        "randwrite-qd1",
        "4 KiB randwrite O_DIRECT QD1",
        Stage.RANDOM_WRITE,
        Measure.IOPS,
        Target(1.0, QCOW2),
        _RANDOM_WRITE_1,
    ),
    Row(
        "randwrite-qd16",
        "4 KiB randwrite O_DIRECT QD16",
        Stage.RANDOM_WRITE,
        Measure.IOPS,
        Target(2.0, QCOW2),
        RANDOM_WRITE_16,
    ),
    Row(
        "seqwrite-qd4",
        "1 MiB sequential write O_DIRECT QD4",
        Stage.SEQUENTIAL_AND_FLUSHED_WRITE,
        Measure.MEGABYTES_PER_S,
        Target(1.0, QCOW2),
        SEQUENTIAL_WRITE,
    ),
    Row(
        "write-fdatasync",
        "4 KiB randwrite O_DIRECT and fdatasync, QD1",
        Stage.SEQUENTIAL_AND_FLUSHED_WRITE,
        Measure.IOPS,
        Target(0.8, RAW),
        dataclasses.replace(_RANDOM_WRITE_1, fdatasync_each=True),
    ),
    Row(
        "buffered-write-fdatasync",
        "4 KiB randwrite, buffered, and fdatasync",
        Stage.SEQUENTIAL_AND_FLUSHED_WRITE,
        Measure.IOPS,
        None,
        dataclasses.replace(_BUFFERED_RANDOM_WRITE, fdatasync_each=True),
    ),
    Row(
        "buffered-randwrite",
        "4 KiB randwrite, buffered",
        Stage.BUFFERED_RANDOM_WRITE,
        Measure.IOPS,
        Target(1.0, QCOW2),
        _BUFFERED_RANDOM_WRITE,
    ),
    Row(
        "buffered-randwrite-synced",
        "4 KiB randwrite, buffered, with the closing fsync",
        Stage.BUFFERED_RANDOM_WRITE,
        Measure.IOPS,
        None,
        dataclasses.replace(_BUFFERED_RANDOM_WRITE, fsync_at_end=True),
    ),
    Row(
        "buffered-seqwrite",
        "1 MiB sequential write, buffered",
        Stage.BUFFERED_SEQUENTIAL_WRITE,
        Measure.MEGABYTES_PER_S,
        Target(1.0, QCOW2),
        _BUFFERED_SEQUENTIAL_WRITE,
    ),
    Row(
        "buffered-seqwrite-synced",
        "1 MiB sequential write, buffered, with the closing fsync",
        Stage.BUFFERED_SEQUENTIAL_WRITE,
        Measure.MEGABYTES_PER_S,
        None,
        dataclasses.replace(_BUFFERED_SEQUENTIAL_WRITE, fsync_at_end=True),
    ),
    Row(
        "cpu-write",
        "daemon's CPU, 4 KiB randwrite O_DIRECT QD16, with the closing fsync",
        Stage.CPU_WRITE,
        Measure.CPU_US,
        Target(12),
        RANDOM_WRITE_16,
    ),
    Row(
        "memory",
        "resident memory, 1 TiB sparse vdisk open, 8 GiB of random 4 KiB writes done",
        Stage.MEMORY,
        Measure.MEMORY_MIB,
        Target(250),
    ),
    Row(
        "index-sequential",
        "index size over data, sequential 1 MiB writes",
        Stage.INDEX_SEQUENTIAL,
        Measure.INDEX_PERCENT,
        Target(0.3),
    ),
    Row(
        "index-random",
        "index size over data, random 4 KiB writes",
        Stage.INDEX_RANDOM,
        Measure.INDEX_PERCENT,
        Target(2.0),
    ),
    Row(
        "mount",
        "cold mount and first ls -l, 64 GiB in 10,000 vdisks",
        Stage.MOUNT,
        Measure.SECONDS,
        Target(2.0),
    ),
    *_history_rows(),
    *_chain_rows(),
    Row(
        "diff",
        "'diff' of two snapshots of a 64 GiB vdisk, 1 % changed here and there",
        Stage.DIFF,
        Measure.SECONDS,
        Target(1.0),
    ),
    Row("tree", "'tree --json' of 5,000 nodes", Stage.TREE, Measure.SECONDS, Target(1.0)),
    Row(
        "gc-slows-down",
        "4 KiB randwrite O_DIRECT QD16 beside collection and compaction: what is lost",
        Stage.COLLECTION,
        Measure.SLOWER_PERCENT,
        Target(20),
    ),
    Row(
        "pause-kill",
        "longest wait of a 4 KiB direct read or write when the daemon is killed, 100 GiB mapped",
        Stage.PAUSES,
        Measure.VERB_MS,
        Target(1000),
    ),
    Row(
        "pause-upgrade",
        "the same when it is upgraded",
        Stage.PAUSES,
        Measure.VERB_MS,
        Target(300),
    ),
    *_node_rows(),
    *_object_rows(),
)


def select_rows(patterns: str | None) -> tuple[Row, ...]:
    """The rows whose names match one of the comma-separated shell patterns, in the table's order.

    Raises:
        InvalidRequest: a pattern matches nothing.
    """
    if patterns is None:
        return ROWS
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in ROWS):
            known = " ".join(row.name for row in ROWS)
            raise InvalidRequest(f"no benchmark row matches {pattern!r}; rows: {known}")
    return tuple(row for row in ROWS if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in wanted))


def plan_stages(rows: tuple[Row, ...], plan: Plan) -> list[list[Row]]:
    """The rows of each stage, stages in the order of their first rows.

    Every contender is started, and its image filled, once a stage.
    """
    stages: dict[Stage, list[Row]] = {}
    for row in rows:
        stage = Stage.READ if plan.shared_images and row.job is not None else row.stage
        stages.setdefault(stage, []).append(row)
    return list(stages.values())


def plan_row_bytes(row: Row, plan: Plan) -> int:
    """The disk space that one row may add to an append-only contender's image."""
    if row.stage is Stage.MEMORY:
        return plan.memory_written_bytes * 5 // 4
    if row.stage in (Stage.INDEX_SEQUENTIAL, Stage.INDEX_RANDOM):
        return plan.image_bytes * 5 // 4
    if row.stage is Stage.MOUNT:
        return plan.mount_vdisks * VDISK_BYTES_MIN
    if (
        row.stage in CHAIN_STAGES
    ):  # two vdisks, each with 1 % more a generation, and as much for a chain of overlays
        return 2 * plan.chain_bytes * (2 + plan.chain_depths[-1] // 90)
    if row.stage is Stage.COLLECTION:
        return (2 + 2 * plan.rounds) * plan.image_bytes
    if row.stage is Stage.PAUSES:
        return 2 * plan.pause_bytes // PAUSE_WRITTEN_PART
    if row.stage is Stage.OBJECTS:
        return 4 * plan.image_bytes
    if row.stage is Stage.NODES:
        return max(3 * plan.image_bytes, plan.mount_vdisks * VDISK_BYTES_MIN)
    if row.stage in HISTORY_STAGES:
        return plan.mapped_bytes // 128 + plan.tree_nodes * VDISK_BYTES_MIN
    assert row.job is not None
    if row.job.reads:
        return 0
    if row.measure is Measure.CPU_US:
        return plan.rounds * plan.cpu_operations * row.job.block_bytes
    return plan.rounds * plan.image_bytes


def plan_scratch_bytes(rows: tuple[Row, ...], plan: Plan, *, contender_count: int) -> int:
    """The free space that the hungriest stage needs; stages follow each other, each on a clean slate.

    Raises:
        InvalidRequest: more than the benchmark may ever use.
    """
    needed = 0
    for stage in plan_stages(rows, plan):
        # One image each, and one more for the pass that overwrites ours.
        additions = [plan_row_bytes(row, plan) for row in stage]
        if stage[0].job is None:  # each row by itself
            needed = max(needed, *additions)
            continue
        images = contender_count + any(row.overwritten for row in stage)
        needed = max(needed, images * plan.image_bytes + sum(additions))
    if needed > SCRATCH_BYTES_MAX:
        raise InvalidRequest(f"so many rounds would fill {needed >> 30} GiB; take fewer with --rounds")
    return needed + SCRATCH_RESERVE_BYTES
