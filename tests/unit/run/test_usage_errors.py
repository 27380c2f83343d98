"""A file that cannot be used: exit code 4, one line with its place, and nothing was started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from as_user import USABLE, run_pytest, told

from pd_validate.run import NOT_FIT

USAGE_ERROR = 4

# What is changed in a right file, and what must be told of it: its place and the word.
MISTAKES = {
    "unknown key": ("nic: eth0", "nik: eth0", "cluster.yaml:2:1", "unknown key `nik`"),
    "missing host": ("host: d2, devices", "host: d9, devices", "cluster.yaml:11:", "d9"),
    "device listed twice": ("d2, devices: [6, 7]", "d2, devices: [6, 6]", "cluster.yaml:11:", "6"),
    "not as many devices as TP": ("[0, 1]", "[0, 1, 2]", "cluster.yaml:9:", "3"),
    "bad YAML": ("hosts:\n", "hosts: {\n", "cluster.yaml:5:", "not valid YAML"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_cluster_file(empty: Path, mistake: str) -> None:
    right, wrong, place, word = MISTAKES[mistake]
    assert right in USABLE
    (empty / "cluster.yaml").write_text(USABLE.replace(right, wrong))
    line = only_line(["--cluster", "cluster.yaml"], empty)
    assert place in line
    assert word in line
    assert [path.name for path in empty.iterdir()] == ["cluster.yaml"], "something was started"


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.yaml", "no such file"), ("directory", "cannot be read")]
)
def test_no_cluster_file(empty: Path, name: str, reason: str) -> None:
    (empty / "directory").mkdir()
    line = only_line(["--cluster", name], empty)
    assert name in line
    assert reason in line


def test_all_mistakes_are_told_at_once_one_line_each(empty: Path) -> None:
    wrong = USABLE.replace("nic: eth0", "nik: eth0").replace("role: prefill", "role: prefiller")
    (empty / "cluster.yaml").write_text(wrong)
    done = run_pytest(["--cluster", "cluster.yaml"], empty)
    assert done.returncode == USAGE_ERROR
    assert [line.split("cluster.yaml:")[1].split(":")[0] for line in told(done)] == ["2", "9"]


def test_a_scenario_with_an_unknown_word(empty: Path) -> None:
    (empty / "scenario.yaml").write_text("faults:\n  - {host: d1, device: 6, lnik: down}\n")
    line = only_line(["--scenario", "scenario.yaml"], empty)
    assert "scenario.yaml:2:" in line
    assert "lnik" in line


def test_a_scenario_of_a_host_that_is_not_there(empty: Path) -> None:
    (empty / "scenario.yaml").write_text("faults:\n  - {host: d7, device: 6, link: down}\n")
    line = only_line(["--scenario", "scenario.yaml"], empty)
    assert "d7" in line
    assert "p1, d1, d2" in line


def test_a_scenario_on_a_real_cluster(empty: Path) -> None:
    """A scenario breaks things: never those of a real cluster."""
    (empty / "cluster.yaml").write_text(USABLE)
    (empty / "scenario.yaml").write_text("faults: []\n")
    line = only_line(["--cluster", "cluster.yaml", "--scenario", "scenario.yaml"], empty)
    assert "--scenario" in line
    assert "twin" in line


@pytest.mark.parametrize("option", ["--report", "--findings"])
def test_a_place_that_cannot_be_written_to(empty: Path, option: str) -> None:
    """Told before the run, not after an hour of it."""
    (empty / "cluster.yaml").write_text(USABLE)
    wrong = empty / "in-the-way"
    if option == "--report":
        wrong.write_text("a file")
    else:
        wrong.mkdir()
    line = only_line(["--cluster", "cluster.yaml", option, str(wrong)], empty)
    assert option in line
    assert str(wrong) in line


def test_a_twin_that_cannot_be_started(empty: Path) -> None:
    """The SSH port of a simulated host is taken: the lab is sick, and says of which host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        twin = USABLE.replace("192.0.2.1}", f"192.0.2.1, ssh: {{port: {port}}}}}")
        (empty / "twin.yaml").write_text(twin.replace("192.0.2", "127.0.0"))
        done = run_pytest(["--cluster", "twin:twin.yaml", "-m", "network"], empty)
    assert "Exit: the twin does not start" in done.stderr
    text = "\n".join(told(done))
    assert "INTERNALERROR" not in text
    assert "Traceback" not in done.stdout
    assert "twin host p1" in text
    assert "address already in use" in text
    assert done.returncode == NOT_FIT
    assert not (empty / "pd-report").exists()


def only_line(arguments: list[str], directory: Path) -> str:
    """The one line that a usage error prints."""
    done = run_pytest(arguments, directory)
    lines = told(done)
    assert done.returncode == USAGE_ERROR, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: ")
    return lines[0]
