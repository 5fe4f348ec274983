"""The house rules that a machine can check: arrows, purity, sizes, names, errors, tests that cannot cheat."""

import ast
import errno
import graphlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import metadata.errors

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = ("metadata", "replication", "fusefs", "tools")  # each may import itself and those before it

PURE = {
    "metadata.block_pictures",
    "metadata.catalog",
    "metadata.difference_stream",
    "metadata.differences",
    "metadata.descent",
    "metadata.errors",
    "metadata.etcd_address",
    "metadata.etcd_messages",
    "metadata.ids",
    "metadata.journal_entries",
    "metadata.liveness",
    "metadata.namespace",
    "metadata.namespace_plans",
    "metadata.records",
    "metadata.rows",
    "metadata.snapshots",
    "metadata.trash",
    "metadata.units",
    "replication.caches",
    "replication.cluster",
    "replication.object_tables",
    "replication.pool_url",
    "replication.wire",
    "fusefs.fuse_abi",
    "fusefs.settings",
    "tools.durations",
    "tools.sizes",
    "tools.tree_nodes",
}
"""Modules that only compute: no clock, no chance, no outside world, and no module of ours that has any."""

IMPURE_IMPORTS = {
    "asyncio", "ctypes", "fcntl", "io", "logging", "mmap", "os", "pathlib", "random", "secrets", "select", "shutil",
    "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "trio",
    "pyfuse3", "rocksdict",
}  # fmt: skip

HOMES = {
    "cryptography": {"replication.certificates"},
    "h11": {"metadata.etcd_http"},
    "rocksdict": {"metadata.index"},
    "obstore": {"replication.object_store"},
    "sqlite3": {"metadata.catalog_sqlite"},
    "pyfuse3": {"fusefs.entries", "fusefs.operations", "fusefs.node"},
    "random": set(),
}
"""The outside things with exactly one home (none: chance comes in through constructors)."""

WITHOUT_TESTS_OF_THEIR_OWN = {
    "metadata": """
        catalog_memory etcd_attempts etcd_calls etcd_history etcd_http etcd_leases etcd_watch
        namespace_plans units
    """,
    "replication": """
        certificates checking cluster company deletion head_making holdings lag librados loading
        moments object_files object_groups object_sending open_views pool pool_objects reader view
        void_tails workspace
    """,
    "fusefs": """
        adoption belonging cache_verbs company_verbs daemon_process difference_verbs finishing node
        node_verbs notifier owner_verbs resolution served_vdisks stopping upgrading verbs_everywhere
    """,
    "tools": """
        cache_arguments cluster_arguments commands_difference commands_mount
        commands_tree commands_vdisk difference_arguments difference_export difference_import
        identities owner_arguments snapshot_arguments
    """,
}
"""Modules that only others' tests reach, by package: the list shrinks. Benchmarks measure; one run of each is tested."""

KEEPER_LEAVES_ALONE = ("trio", "pyfuse3", "rocksdict", "msgpack", "xxhash", "sqlite3", "logging", "asyncio")

ERRNOS = {
    "VdiskfsError": errno.EIO,
    "NotFound": errno.ENOENT,
    "Exists": errno.EEXIST,
    "InvalidRequest": errno.EINVAL,
    "Busy": errno.EBUSY,
    "ReadOnly": errno.EROFS,
    "NotOwner": errno.EBUSY,
    "Fenced": errno.EIO,
    "Unavailable": errno.EIO,
    "NoSpace": errno.ENOSPC,
    "Corrupt": errno.EIO,
    "IndexDamaged": errno.EIO,
    "Conflict": errno.EAGAIN,
}

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
POSITIONAL_MAX = 4
VAGUE_NAMES = {"manager", "helper", "helpers", "utils", "util", "common", "base", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> dict[str, ast.Module]:
    """Every module below the folders, parsed, by its dotted name."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in paths
    }


PACKAGES = sources(*LAYERS)
TESTS = sources("tests")


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in the tree, in functions too; ``.x`` for relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (
                f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in PACKAGES
            )


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def line_count(name: str) -> int:
    return len((ROOT / (name.replace(".", "/") + ".py")).read_text().splitlines())


def test_the_packages_were_found() -> None:
    assert all(any(name.startswith(f"{layer}.") for name in PACKAGES) for layer in LAYERS)


def test_imports_point_down_the_layers() -> None:
    upward = [
        f"{name} imports {imported}"
        for name, tree in PACKAGES.items()
        for imported in imports(tree)
        if imported.split(".")[0] in LAYERS
        and LAYERS.index(imported.split(".")[0]) > LAYERS.index(name.split(".")[0])
    ]
    assert upward == []


def test_imports_are_absolute_and_no_package_imports_the_tests() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in PACKAGES.items()
        for imported in imports(tree)
        if imported.startswith((".", "tests"))
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {module for module in imports(tree) if module in PACKAGES} for name, tree in PACKAGES.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and names the circle


def test_pure_modules_only_compute() -> None:
    impure = []
    for name in PURE:
        for imported in imports(PACKAGES[name]):
            outside = imported.split(".")[0]
            ours = outside in LAYERS and imported in PACKAGES
            if outside in IMPURE_IMPORTS or (ours and imported not in PURE):
                impure.append(f"{name} imports {imported}")
    assert impure == []


def test_outside_things_have_one_home() -> None:
    strays = [
        f"{name} imports {imported}"
        for name, tree in PACKAGES.items()
        for imported in imports(tree)
        if name not in HOMES.get(imported.split(".")[0], {name})
    ]
    assert strays == []


def test_the_keeper_imports_nothing_heavy() -> None:
    probe = (
        f"import sys, fusefs.keeper; print([name for name in {KEEPER_LEAVES_ALONE} if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_module_says_its_job_in_its_first_line() -> None:
    silent = [
        name
        for name, tree in {**PACKAGES, **TESTS}.items()
        if not (ast.get_docstring(tree) or "").partition("\n")[0].strip()
    ]
    assert silent == []


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    fuller = [name for name, tree in PACKAGES.items() if name.endswith(".__init__") and len(tree.body) != 1]
    assert fuller == []
    assert [str(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_modules_and_functions_stay_small() -> None:
    large = [name for name in (*PACKAGES, *TESTS) if line_count(name) > MODULE_LINES_MAX]
    for name, tree in {**PACKAGES, **TESTS}.items():
        for function in functions(tree):
            assert function.end_lineno is not None
            if function.end_lineno - function.lineno + 1 > FUNCTION_LINES_MAX:
                large.append(f"{name}.{function.name}")
    assert large == []


def test_every_module_has_a_test_file_of_its_own_but_for_those_that_are_listed() -> None:
    tested = {name.removeprefix("tests.").replace(".test_", ".") for name in TESTS if ".test_" in name}
    modules = {name for name in PACKAGES if not name.endswith(".__init__") and ".bench" not in name}
    listed = {
        f"{layer}.{name}" for layer, names in WITHOUT_TESTS_OF_THEIR_OWN.items() for name in names.split()
    }
    assert sorted(modules - tested - listed) == [], "write one"
    assert sorted(listed - (modules - tested)) == [], "take it off the list"


def positional_count(function: Function) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_take_few_positional_parameters() -> None:
    forced = {  # pyfuse3 calls its handlers by position
        function
        for tree in PACKAGES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "pyfuse3.Operations" for b in node.bases)
        for function in functions(node)
    }
    greedy = [
        f"{name}.{function.name}"
        for name, tree in PACKAGES.items()
        for function in functions(tree)
        if function not in forced and positional_count(function) > POSITIONAL_MAX
    ]
    assert greedy == []


def test_names_say_what_a_thing_is() -> None:
    vague = [
        name
        for name in PACKAGES
        if name.split(".")[-1] in VAGUE_NAMES or name.split(".")[-1] in sys.stdlib_module_names
    ]
    assert vague == []


def test_nothing_is_left_to_be_done() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    paths = [path for folder in (*LAYERS, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in paths if any(mark in path.read_text() for mark in marks)] == []


def test_every_error_has_its_errno_and_a_place_that_raises_it() -> None:
    classes = {
        name: value
        for name, value in vars(metadata.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {name: value.number for name, value in classes.items()} == ERRNOS
    assert all(issubclass(value, metadata.errors.VdiskfsError) for value in classes.values())
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for name, tree in PACKAGES.items()
        if name != "metadata.errors"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    assert set(ERRNOS) <= used


def test_only_one_module_speaks_the_kernel_s_errors() -> None:
    speakers = {
        name
        for name, tree in PACKAGES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "FUSEError"
    }
    assert speakers <= {"fusefs.operations"}


def test_no_test_sleeps_skips_or_expects_to_fail() -> None:
    banned = {"sleep", "skip", "skipif", "xfail", "importorskip", "flaky"}
    cheats = [
        f"{name} line {node.lineno}: {node.attr}"
        for name, tree in TESTS.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in banned
    ]
    assert cheats == []


def test_every_test_is_a_sentence() -> None:
    terse = [
        f"{name}.{function.name}"
        for name, tree in TESTS.items()
        for function in functions(tree)
        if function.name.startswith("test_") and function.name.count("_") < 3
    ]
    assert terse == []
