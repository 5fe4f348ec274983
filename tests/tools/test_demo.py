"""``make demo`` must work, and leave nothing behind."""

import pathlib
import tempfile

import pytest

from tools import demo


def test_the_demo_runs_to_its_end_and_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "a file of the demo").write_bytes(b"something" * 100_000)
    monkeypatch.setattr(demo, "CONTENT", str(content))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert demo.main() == 0
    printed = capfd.readouterr().out
    assert "disks/clone: OK" in printed
    assert "$ vdiskfs format pool" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["content"]
    assert str(tmp_path) not in pathlib.Path("/proc/self/mountinfo").read_text()


def test_a_step_that_fails_ends_the_demo(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CONTENT", str(tmp_path))
    monkeypatch.setattr(demo, "STEPS", "false\necho never\n")
    assert demo.main() == 1
    assert "exit code 1" in capfd.readouterr().err
