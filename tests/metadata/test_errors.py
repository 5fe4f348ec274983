"""The errors of the whole project: the errno that the kernel gets, the class's own or a more precise one."""

import errno
import pickle

import pytest

from metadata import errors
from metadata.errors import Corrupt, IndexDamaged, NotOwner, Unavailable, VdiskfsError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VdiskfsError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_its_class_s_errno_unless_told(kind: type[VdiskfsError]) -> None:
    assert kind("it failed vdisk=20").number == kind.number
    precise = kind("it failed vdisk=20", number=errno.ESTALE)
    assert (precise.number, str(precise)) == (errno.ESTALE, "it failed vdisk=20")
    assert kind("again").number == kind.number  # the class has kept its own


def test_a_number_of_zero_is_a_number() -> None:
    assert Unavailable("it failed", number=0).number == 0


def test_a_damaged_index_is_damage_and_an_owner_s_refusal_is_none() -> None:
    assert issubclass(IndexDamaged, Corrupt)
    assert not issubclass(NotOwner, Corrupt)


def test_an_error_crosses_a_process_s_border() -> None:
    assert str(pickle.loads(pickle.dumps(NotOwner("another node's")))) == "another node's"
