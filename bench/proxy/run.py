"""Proxies side by side: rate, latency, CPU and memory of each, and the table for docs/proxy.md.

    python bench/proxy/run.py --router /path/to/vllm-router --out bench/proxy/results

Load and engines run on CPU 0, the proxy under test on CPU 1. All subjects take turns in
every round; a cell is the median of the quiet rounds. A peer that is not installed is skipped
with a message. Needs uvloop, orjson; for the peers fastapi, httpx, uvicorn, nginx,
vllm-router (`pip install vllm-router` in an environment of its own).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOAD_CPU, PROXY_CPU = 0, 1
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Subject:
    """A proxy under test: how it is started for engine ports (prefillers, decoders)."""

    name: str
    command: Callable[[int, int, Sequence[int], Path], list[str] | None]  # None: not installed


def ours(access_log: str) -> Callable[[int, int, Sequence[int], Path], list[str]]:
    def command(port: int, prefiller: int, decoders: Sequence[int], tmp: Path) -> list[str]:
        target = str(tmp / "access.log") if access_log == "file" else "off"
        hosts = ["127.0.0.1"] * len(decoders)
        return [
            *(sys.executable, "-m", "proxy", "--port", str(port), "--access-log", target),
            *("--prefiller-hosts", "127.0.0.1", "--prefiller-ports", str(prefiller)),
            *("--decoder-hosts", *hosts, "--decoder-ports", *map(str, decoders)),
        ]

    return command


def fastapi_httpx(port: int, prefiller: int, decoders: Sequence[int], tmp: Path) -> list[str]:
    return [
        *(sys.executable, str(HERE / "fastapi_httpx.py"), "--port", str(port)),
        *("--prefillers", str(prefiller), "--decoders", *map(str, decoders)),
    ]


def router(
    executable: str | None,
) -> Callable[[int, int, Sequence[int], Path], list[str] | None]:
    def command(port: int, prefiller: int, decoders: Sequence[int], tmp: Path) -> list[str] | None:
        if executable is None or not Path(executable).exists():
            return None
        decode = [part for d in decoders for part in ("--decode", f"http://127.0.0.1:{d}")]
        return [
            *(executable, "--vllm-pd-disaggregation", "--host", "127.0.0.1", "--port", str(port)),
            *("--prefill", f"http://127.0.0.1:{prefiller}", *decode),
            *("--policy", "round_robin", "--log-level", "warning"),
            *("--prometheus-port", str(free_port())),
        ]

    return command


NGINX = """
worker_processes 1; daemon off; pid {tmp}/nginx.pid; error_log {tmp}/error.log;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {tmp}/b; proxy_temp_path {tmp}/p;
  fastcgi_temp_path {tmp}/f; uwsgi_temp_path {tmp}/u; scgi_temp_path {tmp}/s;
  keepalive_requests 10000000; client_body_buffer_size 1m;
  upstream engines {{ {servers} keepalive 512; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engines;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""


def nginx(port: int, prefiller: int, decoders: Sequence[int], tmp: Path) -> list[str] | None:
    executable = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if executable is None:
        return None
    servers = " ".join(f"server 127.0.0.1:{d};" for d in decoders)
    config = tmp / "nginx.conf"
    config.write_text(NGINX.format(tmp=tmp, servers=servers, port=port))
    return [executable, "-c", str(config), "-e", str(tmp / "error.log")]


@contextlib.contextmanager
def process(argv: Sequence[str], cpu: int, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own on one CPU; ended with everything it started."""
    child = subprocess.Popen(  # type: ignore[call-overload]  # options pass through
        ["taskset", "-c", str(cpu), *argv], start_new_session=True, cwd=ROOT, **options
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(5)


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [p for child in children for p in tree(int(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree so far."""
    total = 0
    for member in tree(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory(pid: int) -> float:
    """Resident MiB of a process tree."""
    pages = (int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in tree(pid))
    return sum(pages) * PAGE / 2**20


def load_seconds() -> float:
    """CPU time of the load generators that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prefer(pid: int) -> None:
    """Real-time priority for every thread of a process tree."""
    for member in tree(pid):
        for thread in Path(f"/proc/{member}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(PRIORITY))


def machine_seconds() -> float:
    """CPU time used by everybody on the two CPUs so far."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    busy = [int(fields[i]) for i in (0, 1, 2, 5, 6)]
    return sum(busy) / TICK


def others_now(seconds: float = 0.4) -> float:
    """Cores that are in use now, by whomever."""
    before = machine_seconds()
    time.sleep(seconds)
    return (machine_seconds() - before) / seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, child: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"{child.args!r} ended with {child.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{child.args!r} does not listen on {port} within {seconds:g} s")


def load(
    port: int, clients: int, seconds: float, *, stream: bool, prompt: int, preferred: bool
) -> dict[str, float]:
    argv = [
        *(["chrt", "--rr", str(PRIORITY)] if preferred else []),
        *("taskset", "-c", str(LOAD_CPU), sys.executable, str(HERE / "load.py"), str(port)),
        *("--clients", str(clients), "--seconds", str(seconds), "--prompt", str(prompt)),
        *(["--stream"] if stream else []),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 90, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


# Rounds in which other processes used more cores than this do not count, if there are others.
QUIET = 0.35
PRIORITY = 5  # real-time, with --preferred

# name: clients, stream, seconds between two events, characters of prompt
CASES: dict[str, tuple[int, bool, float, int]] = {
    "c1": (1, False, 0.0, 200),
    "c16": (16, False, 0.0, 200),
    "c64": (64, False, 0.0, 200),
    "c16-32k": (16, False, 0.0, 32_000),
    "burst": (16, True, 0.0, 200),
    "paced": (64, True, 0.01, 200),
}


def engines(
    *, stream: bool, pace: float
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    argv = [sys.executable, str(HERE / "engine.py"), "--engines", "3", "--pace", str(pace)]
    argv += ["--stream"] if stream else []
    return process(argv, LOAD_CPU, stdout=subprocess.PIPE)


def measure(
    subject: Subject, case: str, seconds: float, *, preferred: bool
) -> dict[str, float] | None:
    """One cell of one round; None: the subject is not installed."""
    clients, stream, pace, prompt = CASES[case]
    if pace:  # at least one whole answer of 256 events after the warm-up
        seconds = max(seconds, 2 * 256 * pace)
    with engines(stream=stream, pace=pace) as backend, tempfile.TemporaryDirectory() as scratch:
        assert backend.stdout is not None
        prefiller, *decoders = json.loads(backend.stdout.readline())
        if preferred:
            prefer(backend.pid)

        def run(port: int, clients: int, seconds: float) -> dict[str, float]:
            return load(port, clients, seconds, stream=stream, prompt=prompt, preferred=preferred)

        if subject.name == "direct":
            return run(decoders[0], clients, seconds)
        port = free_port()
        argv = subject.command(port, prefiller, decoders, Path(scratch))
        if argv is None:
            return None
        log = Path(scratch) / "log"
        with log.open("wb") as out, process(argv, PROXY_CPU, stdout=out, stderr=out) as child:
            try:
                wait_port(port, child)
            except RuntimeError as error:
                sys.exit(f"{subject.name}: {error}\n{log.read_text()[-2000:]}")
            run(port, min(clients, 4), 0.3)  # warm
            if preferred:
                prefer(child.pid)
            before, all_before = cpu_seconds(child.pid), machine_seconds()
            mine_before = load_seconds() + cpu_seconds(backend.pid)
            started = time.monotonic()
            result = run(port, clients, seconds)
            spent = cpu_seconds(child.pid) - before
            wall = time.monotonic() - started
            mine = spent + load_seconds() + cpu_seconds(backend.pid) - mine_before
            whole = result["rate"] * wall  # the warm-up of a run costs CPU too
            result["cpu_us"] = spent / whole * 1e6 if whole else 0.0
            result["others"] = max(0.0, (machine_seconds() - all_before - mine) / wall)
            result["rss"] = memory(child.pid)
            return result


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The results as Markdown."""
    head = (
        "| | c=1 req/s · p50 · p99 ms | c=16 req/s · p50 · p99 | c=64 req/s · p50 · p99 "
        "| CPU µs/req (c=16) | 32 kB prompt req/s | burst chunks/s | µs/chunk "
        "| paced µs/chunk | first byte ms (64 at once) | MiB |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for name, cases in results.items():

        def cell(case: str, key: str, cases: dict[str, list[dict[str, float]]] = cases) -> float:
            rows = [row for row in cases.get(case, []) if key in row]
            quiet = [row for row in rows if row.get("others", 0.0) < QUIET]
            values = [row[key] for row in quiet or rows]
            return statistics.median(values) if values else float("nan")

        closed = [
            f"{cell(c, 'rate'):,.0f} · {cell(c, 'p50'):.2f} · {cell(c, 'p99'):.2f}"
            for c in ("c1", "c16", "c64")
        ]
        rest = [
            f"{cell('c16', 'cpu_us'):.0f}",
            f"{cell('c16-32k', 'rate'):,.0f}",
            f"{cell('burst', 'rate') * 256:,.0f}",
            f"{cell('burst', 'cpu_us') / 256:.2f}",
            f"{cell('paced', 'cpu_us') / 256:.1f}",
            f"{cell('paced', 'first_p50'):.1f}",
            f"{cell('c64', 'rss'):.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join([*closed, *rest]).replace("nan", "–") + " |")
    return "\n".join(lines)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--router", help="path of vllm-router; default: on the PATH")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parse.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parse.add_argument("--only", nargs="+", help="subjects by name")
    parse.add_argument(
        "--preferred",
        action="store_true",
        help="real-time priority while measuring (root): for a machine that others use too",
    )
    parse.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="seconds, in all, to wait for a quiet machine and to repeat noisy measurements",
    )
    parse.add_argument("--out", type=Path, help="writes FILE.json and FILE.md")
    args = parse.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("needs two CPUs: one for the load, one for the proxy")
    subjects = [
        Subject("direct", lambda *_: None),
        Subject("nginx, one hop", nginx),
        Subject("FastAPI + httpx", fastapi_httpx),
        Subject("vllm-router", router(args.router or shutil.which("vllm-router"))),
        Subject("**ours**", ours("file")),
        Subject("ours, access log off", ours("off")),
    ]
    if args.only:
        subjects = [s for s in subjects if any(word in s.name for word in args.only)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {s.name: {} for s in subjects}
    patient_until = time.monotonic() + args.patience
    for number in range(args.rounds):
        for case in args.cases:
            for subject in list(subjects):
                row = measure(subject, case, args.seconds, preferred=args.preferred)
                while row and row.get("others", 0.0) >= QUIET and time.monotonic() < patient_until:
                    while others_now() >= QUIET and time.monotonic() < patient_until:
                        pass
                    row = measure(subject, case, args.seconds, preferred=args.preferred)
                if row is None:
                    print(f"{subject.name}: not installed, skipped", file=sys.stderr)
                    subjects.remove(subject)
                    del results[subject.name]
                    continue
                results[subject.name].setdefault(case, []).append(row)
                numbers = {key: round(value, 2) for key, value in row.items()}
                print(f"{number} {case:8} {subject.name:22} {numbers}", file=sys.stderr)
    text = table(results)
    print(text)
    if args.out is not None:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count()}
        args.out.with_suffix(".json").write_text(
            json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
        )
        args.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
