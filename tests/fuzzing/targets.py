"""All byte fuzzers by name, and their corpus: for each a text file, an input a line, in base64.

The corpus is kept small: what the coverage-guided fuzzer needs to reach everything (``driver.py --keep``), and whatever
once broke something.
"""

import base64
import functools
import importlib
import pathlib
from collections.abc import Callable

Target = Callable[[bytes], None]

CORPUS = pathlib.Path(__file__).parent / "corpus"

_TARGETS = {
    "records": "stored.fuzz_record",
    "tails": "stored.fuzz_tail",
    "journal": "stored.fuzz_journal",
    "rows": "stored.fuzz_rows",
    "checkpoints": "stored.fuzz_checkpoint",
    "markers": "stored.fuzz_pool_marker",
    "wire": "spoken.fuzz_wire",
    "publications": "spoken.fuzz_publication",
    "streams": "spoken.fuzz_stream",
    "etcd": "spoken.fuzz_etcd",
    "control": "spoken.fuzz_control",
    "settings": "configured.fuzz_settings",
    "addresses": "configured.fuzz_addresses",
    "credentials": "configured.fuzz_credentials",
    "catalog": "configured.fuzz_rows_of_the_catalog",
    "objects": "configured.fuzz_object_tables",
    "registry": "configured.fuzz_mount_record",
    "requests": "requests.fuzz_requests",
}
NAMES = tuple(_TARGETS)


@functools.cache
def target(name: str) -> Target:
    """The function; its modules are loaded only then, so that a fuzzer can instrument them."""
    module, _, function = _TARGETS[name].partition(".")
    found: Target = getattr(importlib.import_module(f"tests.fuzzing.{module}"), function)
    return found


def read_corpus(name: str) -> list[bytes]:
    """The inputs kept for a target."""
    path = CORPUS / f"{name}.txt"
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_corpus(name: str, inputs: list[bytes]) -> None:
    """Keeps these."""
    CORPUS.mkdir(exist_ok=True)
    lines = sorted({base64.b64encode(each).decode() for each in inputs}, key=lambda line: (len(line), line))
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
