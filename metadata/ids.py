"""Identities, and how a place packs one block's whereabouts into 64 bits.

    place = epoch (22 bits) | group number (26 bits) | block position in the group (16 bits)

``place >> 16`` is the ``GroupId``, unique within its vdisk, and groups in log order sort by it.
Epochs start at 1, so the small values are free for the places that are not bytes of a group.
A run of places that counts up by one lies contiguous in one group, because no group reaches 2**16 blocks.
"""

from typing import NewType

VdiskId = NewType("VdiskId", int)
"""64 bits, given out by the catalog, never reused. Also the inode number of the vdisk's file."""

Version = NewType("Version", int)
"""Grows with each commit of a vdisk; 0 is the empty vdisk before its first commit."""

Epoch = NewType("Epoch", int)
"""Grows with each change of owner; starts at 1."""

GroupId = NewType("GroupId", int)
"""(epoch, number) of an extent group within its vdisk, 48 bits."""

Place = NewType("Place", int)
"""Where one block lies: HOLE, PARENT or a block position in a group of the same vdisk."""

HOLE = 0
CUT = 1
"""Only in commit records and journal entries: this block and all behind it are holes (a truncation). With a count above
1: no block, but a forwarded call (metadata/records.py)."""
PARENT = 2
"""As the parent has it. Every place above this one is bytes in a group."""

POSITION_BITS = 16
POSITION_MASK = (1 << POSITION_BITS) - 1
NUMBER_BITS = 26
EPOCH_MAX = (1 << 22) - 1
NUMBER_MAX = (1 << NUMBER_BITS) - 1
COMPACTED_FROM = 1 << (NUMBER_BITS - 1)
"""Groups numbered from here on hold what compaction moved: data without records, no part of the log."""


def group_id(epoch: int, number: int) -> GroupId:
    """The id of the ``number``-th group (from 0) written under ``epoch``."""
    assert 1 <= epoch <= EPOCH_MAX
    assert 0 <= number <= NUMBER_MAX
    return GroupId(epoch << NUMBER_BITS | number)


def epoch_of(group: int) -> Epoch:
    """The epoch under which a group was written."""
    return Epoch(group >> NUMBER_BITS)


def number_of(group: int) -> int:
    """The group's number within its epoch."""
    return group & NUMBER_MAX


def is_compacted(group: int) -> bool:
    """Whether compaction wrote this group; the log wrote all others."""
    return number_of(group) >= COMPACTED_FROM
