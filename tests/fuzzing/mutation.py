"""Inputs at random: pieces of a corpus changed, cut, repeated and joined. Pure."""

import random
from collections.abc import Sequence

LENGTH_MAX = 4096
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF)


def mutate(corpus: Sequence[bytes], chance: random.Random) -> bytes:
    """One more input."""
    data = bytearray(chance.choice(corpus) if corpus and chance.random() < 0.9 else b"")
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(data):
                data[at] = chance.choice(_EDGES)
            case 2:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 8, 40)))
            case 3:
                del data[at : at + chance.choice((1, 2, 8, 64))]
            case 4 if data:
                data[at:at] = data[at : at + 64] * chance.choice((1, 2, 9))
            case 5 if corpus:
                other = chance.choice(corpus)
                start = chance.randrange(len(other) + 1)
                data[at:] = other[start:]
            case 6:
                width = chance.choice((1, 2, 4, 8))
                value = chance.choice((0, 1, (1 << 8 * width) - 1, chance.getrandbits(8 * width)))
                data[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
            case 7:
                data[at:at] = bytes([chance.randrange(256)]) * chance.choice((3, 30, 300))
            case _:
                data += chance.randbytes(chance.choice((4, 30, 200)))
    return bytes(data[:LENGTH_MAX])
