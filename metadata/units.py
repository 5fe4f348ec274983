"""The sizes everything agrees on. Plain sizes are bytes."""

BLOCK_BYTES = 4096
"""The smallest unit of the map."""

VBLOCK_BLOCKS = 256
"""Blocks in one index row."""

VBLOCK_BYTES = BLOCK_BYTES * VBLOCK_BLOCKS

SEGMENT_BLOCKS = 256
"""Blocks of a group whose checksums share one index row."""

GROUP_BLOCKS = 16384
"""A group is sealed when its data reach this many blocks (64 MiB); a last commit record may follow."""

VDISK_BYTES_MAX = 1 << 60
"""1 EiB: block numbers then fit 48 bits, as the commit record's extents need."""

NAME_BYTES_MAX = 255
"""As Linux has it (NAME_MAX)."""

TRASH_S_DEFAULT = 86400
"""How long a pool keeps deleted vdisks unless it was told otherwise when it was made."""
TRASH_S_MAX = 100 * 365 * 86400
CACHE_BYTES_DEFAULT = 20 << 30
"""What a node keeps on its own disk of what a remote pool has."""
