"""Runs the twin's tools: against a small twin, or put into a recorded state."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twin.fabric import FabricState
from twin.tools import answers, hccn_tool, launch, npu_smi, state
from twin.tools.answers import Answers, Machine
from twin.tools.console import Console

TRANSCRIPTS = Path(__file__).parents[2] / "data" / "transcripts"
# The recordings were made on this day; certificates near their end depend on it.
RECORDED_AT = 1795302000.0  # 2026-11-22 05:00 UTC


@dataclass
class Screen(Console):
    """Keeps what a tool prints, apart and as one pipe or terminal would show it."""

    stdout: str = ""
    stderr: str = ""
    terminal: str = ""
    slept: float = 0.0
    clock: float = RECORDED_AT

    def out(self, text: str) -> None:
        self.stdout += text
        self.terminal += text

    def err(self, text: str) -> None:
        self.stderr += text
        self.terminal += text

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def now(self) -> float:
        return self.clock

    @property
    def pipe(self) -> str:
        """Both streams into one pipe: stdout is block-buffered, so it comes last."""
        return self.stderr + self.stdout


@dataclass
class Outcome:
    exit: int
    screen: Screen = field(default_factory=Screen)


@dataclass
class Twin:
    """A fabric on disk; change `fabric`, then `store` it."""

    fabric: FabricState
    directory: Path

    def store(self) -> None:
        self.fabric.write(self.directory)

    def hccn(self, host: str, command: str, *, user: str = "root") -> Outcome:
        """Call hccn_tool on `host` with the words of `command`."""
        screen = Screen()
        machine = answers.machine_of(
            state.load(str(self.directory)),
            host,
            conf=state.hccn_conf_path(str(self.directory), host),
            user=user,
            now=screen.now(),
        )
        return Outcome(hccn_tool.main(["hccn_tool", *command.split()], machine, screen), screen)

    def smi(self, host: str, command: str) -> Outcome:
        """Call npu-smi on `host` with the words of `command`."""
        screen = Screen()
        values = npu_smi.values_of(state.load(str(self.directory)), host, screen.now())
        return Outcome(npu_smi.main(["npu-smi", *command.split()], values, screen), screen)

    def environment(self, host: str) -> dict[str, str]:
        """Of a process on `host`, with the executables first on PATH."""
        programs = self.directory / "bin"
        launch.install(str(programs))
        return {
            **os.environ,
            "TWIN_STATE": str(self.directory),
            "TWIN_HOST": host,
            "PATH": f"{programs}:{os.environ['PATH']}",
        }

    def shell(
        self, host: str, *argv: str, stdin: str = "", merged: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a real executable on `host`."""
        return subprocess.run(
            argv,
            env=self.environment(host),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )


def transcripts(tool: str) -> list[dict[str, Any]]:
    lines = (TRANSCRIPTS / f"{tool}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def user_of(recorded: str) -> str:
    """The name behind the recording's user; the recording machine knew no 4242."""
    return {"root": "root", "uid 65534": "nobody"}.get(recorded, "")


def replay_hccn_tool(record: dict[str, Any], conf: Path) -> Outcome:
    recorded = record["state"]
    if record.get("hccn_conf_before") is not None:
        conf.write_text(record["hccn_conf_before"], encoding="utf-8")
    machine = Machine(
        {device: Answers(recorded) for device in range(recorded["dev.count"])},
        user=user_of(record["user"]),
        conf=str(conf),
        is_a3=record["product"] == "A3",
        log_directory_is_file="/var/log/hccn_tool is a regular file" in record.get("note", ""),
    )
    screen = Screen()
    return Outcome(hccn_tool.main(record["argv"], machine, screen), screen)


def replay_npu_smi(record: dict[str, Any]) -> Outcome:
    values = dict(record["state"])
    for key, value in record["state"].items():
        if key.endswith(".pid"):
            # One pid was alive on the recording machine, under this name; no other was.
            name = "VLLMEngineCore" if value == 32482 else ""
            values[key.removesuffix("pid") + "name"] = name
    screen = Screen()
    installed = record.get("install_info_present", True)
    return Outcome(
        npu_smi.main(record["argv"], values, screen, completely_installed=installed), screen
    )
