"""The daemon is killed while the kernel, asked to write back, waits for it: nobody waits for ever."""

import os
import pathlib
import threading

from tests.mounted_pool import MountedPool, children

MIB = 1 << 20
KILLS = 3
ROUNDS_MAX = 60
WAIT_S = 60.0


def waits_in_the_kernel(pid: int) -> bool:
    """Whether a thread of this process is in a wait that no signal ends."""
    try:
        states = [(task / "stat").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return any(state.rpartition(")")[2].split()[0] == "D" for state in states)


def ask(descriptor: int, found: list[int]) -> None:
    found.append(os.lseek(descriptor, 0, os.SEEK_HOLE))


def test_a_daemon_killed_while_the_kernel_writes_back_for_it_has_a_successor(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    kills = 0
    for number in range(ROUNDS_MAX):
        content = bytes([number + 1]) * (32 * MIB)
        (notifier,) = children(mounted.daemon_pid())
        with disk.open("w+b", buffering=0) as file:
            file.write(content)
            found: list[int] = []
            asking = threading.Thread(target=ask, args=(file.fileno(), found))
            asking.start()
            while asking.is_alive() and not waits_in_the_kernel(notifier):
                pass
            if asking.is_alive():
                mounted.kill_daemon()
                kills += 1
            asking.join(WAIT_S)
            assert not asking.is_alive(), f"still waiting after {WAIT_S} s"
            assert found == [32 * MIB]
        assert disk.read_bytes() == content
        if kills == KILLS:
            break
    assert kills
    mounted.run("check", mounted.mountpoint)
