"""The program that runs on the hosts: what it needs there, and how it reads /proc."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pd_validate.hosts import agent

SOURCE = Path(agent.__file__).read_text()


def test_it_is_python_3_8() -> None:
    """Hosts run what their distribution has; openEuler 20.03 and Ubuntu 20.04 had 3.7 and 3.8."""
    ast.parse(SOURCE, feature_version=(3, 8))


def test_it_needs_nothing_but_the_standard_library() -> None:
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import)]
    sources = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)]
    modules = {alias.name for node in imports for alias in node.names}
    modules |= {str(node.module).partition(".")[0] for node in sources}
    assert modules <= sys.stdlib_module_names


def test_annotations_are_never_evaluated() -> None:
    """`dict[str, int]` outside of annotations does not exist in Python 3.8."""
    assert "from __future__ import annotations" in SOURCE
    program = (
        "import sys; sys.argv = ['agent', '--help']; exec(compile(sys.stdin.read(), 'a', 'exec'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], input=SOURCE, text=True, timeout=20
    )
    assert done.returncode == 0


def test_a_process_is_read_whatever_its_name(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"], start_new_session=True) as child:
        try:
            found = agent.process(child.pid)
            assert found is not None
            assert (found.pid, found.parent, found.session) == (child.pid, os.getpid(), child.pid)
            assert agent.title(child.pid) == f"{program} 600"
        finally:
            child.kill()
    assert agent.process(child.pid) is None
    assert agent.environment(child.pid) == {}
    assert agent.title(child.pid) == ""


def test_descendants_are_found_over_generations() -> None:
    def found(pid: int, parent: int) -> agent.Found:
        return agent.Found(pid, parent, session=0, state="S", start=0)

    table = {pid: found(pid, parent) for pid, parent in [(2, 1), (3, 2), (4, 3), (5, 1), (6, 9)]}
    assert agent.descendants(2, table) == {3, 4}
    assert agent.descendants(1, table) == {2, 3, 4, 5}
    assert agent.descendants(7, table) == set()


@pytest.mark.skipif(sys.byteorder != "little", reason="the kernel prints words in host order")
@pytest.mark.parametrize(
    ("raw", "family", "address"),
    [
        ("0100007F", socket.AF_INET, "127.0.0.1"),
        ("00000000", socket.AF_INET, "0.0.0.0"),
        ("00000000000000000000000000000000", socket.AF_INET6, "::"),
        ("00000000000000000000000001000000", socket.AF_INET6, "::1"),
        ("0000000000000000FFFF00000200000A", socket.AF_INET6, "10.0.0.2"),
        ("B80D0120000000000000000001000000", socket.AF_INET6, "2001:db8::1"),
    ],
)
def test_addresses_as_the_kernel_prints_them(raw: str, family: int, address: str) -> None:
    assert agent.unpack_address(raw, family) == address


@pytest.mark.parametrize(
    ("bound", "wanted", "collides"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("::", "10.0.0.1", True),
        ("10.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "10.0.0.1", False),
    ],
)
def test_who_is_in_whose_way(bound: str, wanted: str, collides: bool) -> None:
    assert agent.collide(bound, wanted) is collides


def test_the_lock_survives_the_removal_of_its_file(tmp_path: Path) -> None:
    """A holder removes the file before it lets go; who waited must not lock the removed one."""
    path = str(tmp_path / "lock")
    first, left = agent.take_lock(path, "me@here")
    assert left is None
    with pytest.raises(agent.Locked) as refusal:
        agent.take_lock(path, "me@here")
    assert refusal.value.held
    os.unlink(path)
    os.close(first)
    second, _ = agent.take_lock(path, "me@here")
    assert agent.is_held(path)
    assert os.path.samestat(os.fstat(second), os.stat(path))
    os.close(second)
    assert not agent.is_held(path)
