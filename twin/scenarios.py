"""All scenarios, one after the other: `python -m twin.scenarios [--fast] [FILE or DIRECTORY …]`.

Prints a table as it goes: scenario, what was expected where, what was got, seconds, false
findings. Ends with 1 if any scenario is not caught exactly.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from pd_validate.errors import PdValidateError
from twin.cluster import PROJECT
from twin.scenario import Expected, Scenario, load_scenario
from twin.shared import SharedTopology, can_share
from twin.trial import NETWORK, Trial, TrialFailed, try_scenario

SCENARIOS = PROJECT / "tests" / "scenarios"
# Of the network scenarios one of each kind, quick ones: part of `make test`.
FAST = (
    *("healthy-a2", "link-down", "hccn-conf-stale-address", "address-missing"),
    *("address-duplicate", "gateway-outside-subnet", "ping-loss", "ping-unreachable"),
    *("tls-differs", "net-health-unreachable", "a3-vnic-down", "driver-not-loaded"),
    *("port-taken", "host-unreachable", "proxy-variable", "npu-in-use", "tool-missing"),
)


def scenario_files(places: Sequence[Path], *, fast: bool = False) -> list[Path]:
    """The scenario files at `places` (files, or directories to look into), in order of name."""
    files = [file for place in places or [SCENARIOS] for file in _files(place)]
    return [file for file in files if not fast or file.stem in FAST]


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    for kind in (NETWORK, "ranktable", "engine"):
        yield from sorted((place / kind).glob("*.yaml"))
    yield from sorted(place.glob("*.yaml"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m twin.scenarios", description=__doc__)
    parser.add_argument("places", nargs="*", type=Path, metavar="FILE or DIRECTORY")
    parser.add_argument("--fast", action="store_true", help="only those of `make test`")
    parser.add_argument(
        "--as-user", action="store_true", help="run each in a pytest of its own, as a user would"
    )
    parser.add_argument("--list", action="store_true", help="what there is; run nothing")
    options = parser.parse_args(argv)
    files = scenario_files(options.places, fast=options.fast)
    if not files:
        parser.error("no scenario files there")
    if options.list:
        print("\n".join(listing(files)))
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    return _try_all(files, as_user=options.as_user)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A CI system's cancel must end the pytest that runs and its hosts, as Ctrl-C does."""
    raise KeyboardInterrupt(f"signal {signal.Signals(number).name}")


def listing(files: Sequence[Path]) -> list[str]:
    """A table of scenarios, as docs/scenarios.md has it."""
    lines = [_line("scenario", "what is broken", "expected"), _line("---", "---", "---")]
    for file in files:
        scenario = load_scenario(file)
        wanted = "; ".join(_place(each) for each in scenario.expect.findings) or "nothing"
        lines.append(_line(file.stem, " ".join(scenario.about.split()), wanted))
    return lines


def _try_all(files: Sequence[Path], *, as_user: bool) -> int:
    print(_line("scenario", "expected", "got", "seconds", "false"))
    print(_line("---", "---", "---", "---", "---"))
    failed: list[str] = []
    started = time.monotonic()

    def told(file: Path, attempt: Callable[[], Trial]) -> None:
        try:
            trial = attempt()
        except (PdValidateError, TrialFailed) as error:
            print(_line(file.stem, "", "not tried", "", ""), flush=True)
            failed.append(f"{file}: {error}")
            return
        print(_row(trial), flush=True)
        if not trial.caught:
            failed.append(str(trial))

    shared: dict[str, list[tuple[Path, Scenario]]] = {}
    for file in files:
        try:
            scenario = load_scenario(file)
        except PdValidateError:
            scenario = None  # trying it alone will say what is wrong with it
        if scenario is not None and can_share(scenario) and not as_user:
            shared.setdefault(scenario.cluster, []).append((file, scenario))
            continue
        told(file, partial(try_scenario, file, as_user=as_user))
    for cluster, group in shared.items():
        _try_together(cluster, group, told)
    seconds = time.monotonic() - started
    caught = len(files) - len(failed)
    print(f"\n{caught} of {len(files)} scenarios caught exactly, {seconds:.0f} s in all")
    for story in failed:
        print(f"\n{story}")
    return 1 if failed else 0


def _try_together(
    cluster: str,
    group: Sequence[tuple[Path, Scenario]],
    told: Callable[[Path, Callable[[], Trial]], None],
) -> None:
    """Scenarios whose faults come and go on one running topology; a single one needs none."""
    if len(group) == 1:
        file, _ = group[0]
        told(file, partial(try_scenario, file))
        return
    with tempfile.TemporaryDirectory(prefix="pd-trial-") as name:
        directory, started = Path(name), time.monotonic()
        try:
            topology = SharedTopology.start(cluster, directory)
        except (PdValidateError, TrialFailed) as error:
            for file, _ in group:
                told(file, partial(_raise, error))
            return
        with topology:
            seconds = f"{time.monotonic() - started:.1f}"
            print(_line(f"(bring-up for {len(group)})", "", "", seconds, ""), flush=True)
            for file, scenario in group:
                told(file, partial(topology.try_scenario, file, scenario, directory))


def _raise(error: Exception) -> Trial:
    raise error


def _row(trial: Trial) -> str:
    wanted = "; ".join(_place(each) for each in trial.expected) or "nothing"
    missed = trial.missed
    found = "as expected"
    if missed:
        found = "not found: " + "; ".join(_place(each) for each in missed)
    elif not trial.caught and trial.notes:
        found = trial.notes[0].splitlines()[0]
    false = "; ".join(f"{f.id} at {f.where}" for f in trial.false_findings) or "none"
    return _line(trial.file.stem, wanted, found, f"{trial.seconds:.1f}", false)


def _place(wanted: Expected) -> str:
    severity = f"{wanted.severity.value} " if wanted.severity is not None else ""
    return f"{severity}{wanted.id} at {wanted.where}"


def _line(*cells: str) -> str:
    """A row of a Markdown table, so that it can be pasted into a report."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # what ran has been ended on the way here
