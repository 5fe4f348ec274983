"""The script that replays a failure by itself: the calls that it needs, what each must answer, and a pool to do it on."""

import inspect
from collections.abc import Sequence

from tests.calls import plain_calls
from tests.calls.plain_calls import Files

Step = tuple[str, tuple[object, ...], object]
"""A call, its arguments, what it must answer."""

_ALWAYS = {"__init__", "call", "at", "vdiskfs", "verb"}
_NEEDS = {"tree": {"stat", "listdir", "readlink", "listxattr", "getxattr"}}

_MAIN = """
def main() -> None:
    top = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="vdiskfs-replay-")
    pool, roots = os.path.join(top, "pool"), [os.path.join(top, f"mnt{{node}}") for node in range({nodes})]
    files = Files(roots, "folder")
    assert files.vdiskfs("format", pool) is not None, "is vdiskfs in the PATH, and the folder empty?"
    for node, root in enumerate(roots):
        os.mkdir(root)
        files.vdiskfs("mount", "--node", f"n{{node}}", "--state", os.path.join(top, f"state{{node}}"), pool, root)
    os.mkdir(files.at("0/"))
    try:
        for number, (name, arguments, wanted) in enumerate(STEPS):
            found = digest(files.call(name, *arguments))
            print(number, name, *arguments, "->", found, flush=True)
            if wanted != "*" and found != wanted:
                sys.exit(f"call {{number}}, {{name}}, must answer {{wanted}}")
        print("every call answered as it must")
    finally:
        for fd in files.fds.values():
            os.close(fd)
        for root in roots:
            files.vdiskfs("umount", root)


main()
"""


def script(steps: Sequence[Step], *, nodes: int = 1, title: str = "") -> str:
    """Python that needs nothing of this repository but an installed ``vdiskfs``."""
    used = {name for name, _, _ in steps}
    for name in tuple(used):
        used |= _NEEDS.get(name, set())
    head, _, _ = inspect.getsource(plain_calls).partition("class Files")
    _, _, head = head.partition('"""\n\n')  # behind the module's docstring
    methods = [
        inspect.getsource(method)
        for name, method in vars(Files).items()
        if inspect.isfunction(method) and (name in used or name in _ALWAYS)
    ]
    lines = [f"    ({name!r}, {arguments!r}, {wanted!r})," for name, arguments, wanted in steps]
    return "\n".join(
        [
            f'"""Replays a failure{title}: python3 SCRIPT [EMPTY FOLDER], as root, with vdiskfs in the PATH."""\n',
            "import sys",
            "import tempfile",
            head.rstrip(),
            "\n\nclass Files:",
            *methods,
            "\nSTEPS = [",
            *lines,
            "]",
            _MAIN.format(nodes=nodes),
        ]
    )
