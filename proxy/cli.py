"""Command line of the proxy: the flags of vllm-ascend's example proxy, or a TOML file.

argparse accepts unambiguous abbreviations; the guide's `--prefiller-port` is one.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import dataclasses
import gc
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from proxy.balancer import POLICIES, Address
from proxy.config import Config

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD = -1, -2
_KEPT = 64 * 1024 * 1024  # bytes that may stay free at the end of the heap


class UsageError(Exception):
    """Arguments or file cannot be used; one line for a person."""


def parser() -> argparse.ArgumentParser:
    defaults = Config()
    parse = argparse.ArgumentParser(
        prog="python -m proxy", description="Prefill/decode load-balancing proxy for vLLM."
    )
    parse.add_argument("--config", type=Path, help="TOML file; flags override it")
    parse.add_argument("--host", help=f"address to listen on (default {defaults.host})")
    parse.add_argument("--port", type=int, help=f"port to listen on (default {defaults.port})")
    parse.add_argument("--prefiller-hosts", nargs="+", metavar="HOST", default=[])
    parse.add_argument("--prefiller-ports", nargs="+", metavar="PORT", type=int, default=[])
    parse.add_argument("--decoder-hosts", nargs="+", metavar="HOST", default=[])
    parse.add_argument("--decoder-ports", nargs="+", metavar="PORT", type=int, default=[])
    parse.add_argument("--policy", choices=sorted(POLICIES), help="default least-load")
    for name, text in _NUMBERS.items():
        value = getattr(defaults, name)
        parse.add_argument(
            "--" + name.replace("_", "-"),
            type=type(value),
            metavar="N",
            help=f"{text} (default {value:g})",
        )
    parse.add_argument("--access-log", metavar="FILE", help='"-" (default), "off", or a file')
    parse.add_argument(
        "--admin-key-file", type=Path, help="file with the admin interface's key; none: disabled"
    )
    return parse


_NUMBERS = {
    "connect_seconds": "deadline for connecting to an engine",
    "prefill_seconds": "deadline for a prefill",
    "first_token_seconds": "deadline for the first event of a stream",
    "gap_seconds": "deadline between two events of a stream",
    "answer_seconds": "deadline for an answer that is not streamed",
    "send_seconds": "time for a client to take what waits for it; then it is given up",
    "handover_seconds": "an unwanted request stays this long with a decoder, to be admitted",
    "release_seconds": "time to find a decoder for KV that nobody wants any more",
    "drain_seconds": "time for requests under way after SIGTERM",
    "attempts": "decoders tried for one request",
    "failures": "failures in a row that take an instance out",
    "probe_seconds": "time between two health probes",
    "probe_failures": "failed probes in a row that take an instance out",
    "max_body": "largest request body, bytes",
    "max_concurrent": "requests served at once",
    "max_queue": "requests that may wait for a turn",
    "queue_seconds": "longest wait for a turn",
}


def config_of(argv: Sequence[str]) -> Config:
    """The configuration that arguments (and the file they name) ask for. Raises UsageError."""
    args = parser().parse_args(argv)
    values: dict[str, Any] = _from_file(args.config) if args.config is not None else {}
    for name in ("host", "port", "policy", "access_log", *_NUMBERS):
        value = getattr(args, name)
        if value is not None:
            values[name] = value
    for role in ("prefiller", "decoder"):
        hosts, ports = getattr(args, f"{role}_hosts"), getattr(args, f"{role}_ports")
        if hosts or ports:
            values[f"{role}s"] = _addresses(role, hosts, ports)
    if args.admin_key_file is not None:
        values["admin_key"] = _read(args.admin_key_file).strip()
        if not values["admin_key"]:
            raise UsageError(f"{args.admin_key_file} is empty; write the admin key into it")
    config = Config(**values)
    _check(config)
    return config


def _addresses(role: str, hosts: Sequence[str], ports: Sequence[int]) -> tuple[Address, ...]:
    if len(hosts) != len(ports):
        raise UsageError(
            f"--{role}-hosts names {len(hosts)} and --{role}-ports {len(ports)}: "
            "give one port for each host"
        )
    return tuple(Address(h.strip("[]"), p) for h, p in zip(hosts, ports, strict=True))


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(Config)}
    defaults = Config()
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in fields:
            raise UsageError(f"{path}: unknown key {name!r}; known: {', '.join(sorted(fields))}")
        if name in ("prefillers", "decoders"):
            values[name] = tuple(_address(path, name, item) for item in _list(path, name, value))
            continue
        wanted = type(getattr(defaults, name))
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise UsageError(f"{path}: {name} must be {wanted.__name__}, got {value!r}")
        values[name] = value
    return values


def _list(path: Path, name: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise UsageError(f"{path}: {name} must be a list of {{host, port}} tables, got {value!r}")
    return value


def _address(path: Path, name: str, item: object) -> Address:
    if isinstance(item, dict) and set(item) <= {"host", "port", "name"}:
        host, port, label = item.get("host"), item.get("port"), item.get("name", "")
        if isinstance(host, str) and type(port) is int and isinstance(label, str):
            return Address(host, port, label)
    raise UsageError(f"{path}: {name} takes {{host = …, port = …, name = …}}, got {item!r}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: {reason}") from None


def _check(config: Config) -> None:
    for noun, addresses in (("prefiller", config.prefillers), ("decoder", config.decoders)):
        if not addresses:
            raise UsageError(f"no {noun}; name them with --{noun}-hosts and --{noun}-ports")
        labels = [address.label for address in addresses]
        double = {label for label in labels if labels.count(label) > 1}
        if double:
            raise UsageError(f"{noun} {', '.join(sorted(double))} is listed twice")
        for address in addresses:
            if not 0 < address.port < 65536:
                raise UsageError(f"{noun} {address.label}: a port is 1 to 65535")
    if not 0 <= config.port < 65536:
        raise UsageError(f"port {config.port}: a port is 1 to 65535, or 0 for any free one")
    if config.policy not in POLICIES:
        raise UsageError(f"policy {config.policy!r}: one of {', '.join(sorted(POLICIES))}")
    for name in _NUMBERS:
        if getattr(config, name) < (0 if name in ("max_queue", "drain_seconds") else 1e-9):
            raise UsageError(f"{name} is {getattr(config, name)}: must be above 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proxy; returns the exit code."""
    try:
        config = config_of(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"proxy: {error}", file=sys.stderr)
        return 2
    try:
        _run(config)
    except OSError as error:
        place = f"{config.host}:{config.port}"
        print(f"proxy: cannot listen on {place}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _run(config: Config) -> None:
    from proxy.server import serve  # heavy; not needed to reject bad arguments

    # What is loaded by now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    _keep_freed_memory()

    async def run() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        await serve(config, ended)

    try:
        import uvloop
    except ImportError:  # optional: faster
        asyncio.run(run())
    else:
        uvloop.run(run())


def _keep_freed_memory() -> None:
    """Tell glibc not to give memory back to the kernel after every long prompt.

    With prompts of 32 kB the page faults of getting it again are a tenth of all the work.
    Other C libraries have no such call, and no such need.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_TOP_PAD, _KEPT // 4)


def exit_main() -> NoReturn:
    sys.exit(main())
