"""Faults of engines: HTTP answers through the middleware, processes killed or stopped once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from twin.cluster import PROJECT
from twin.engine import adapt, middleware
from twin.faults import write_engine_faults
from twin.scenario import Scenario

SITE = PROJECT / "twin" / "site"


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("PD_INSTANCE", "decode-1")
    monkeypatch.setenv("TWIN_STATE", str(tmp_path))


def scenario(*faults: Mapping[str, object]) -> Scenario:
    return Scenario.model_validate({"faults": faults})


# --- HTTP -----------------------------------------------------------------------------------------


class Cycle:
    """As much of uvicorn's cycle of one request as a fault needs."""

    def __init__(self, got: list[Any]) -> None:
        self._got = got

    @property
    def transport(self) -> Cycle:
        return self

    def abort(self) -> None:
        self._got.append("reset")

    async def receive(self) -> dict[str, Any]:
        return {}


def answers(
    state: Path,
    faults: Sequence[Mapping[str, Any]],
    paths: Sequence[str],
    *,
    lengths: Sequence[int] = (),
) -> list[list[Any]]:
    """What a client gets for requests to `paths`, one after the other; [..., "cut"] if cut.

    `lengths`: chunks of each answer, without them four.
    """
    from twin_engine.http_faults import HttpFaults, StreamCut

    write_engine_faults(state, scenario(*faults))
    chunks = 0

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(chunks):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def ask(app: Any, path: str, length: int) -> list[Any]:
        nonlocal chunks
        chunks = length
        got: list[Any] = []

        async def send(message: dict[str, Any]) -> None:
            got.append(message.get("status") or message["body"])

        try:
            await app({"type": "http", "path": path}, Cycle(got).receive, send)
        except StreamCut:
            got.append("cut")
        return got

    async def all_of_them() -> list[list[Any]]:
        app = HttpFaults(engine)
        each = zip(paths, lengths or [4] * len(paths), strict=True)
        return [await ask(app, path, length) for path, length in each]

    return asyncio.run(all_of_them())


WHOLE = [200, b"0", b"1", b"2", b"3", b""]
COMPLETIONS = "/v1/completions"


def http(**words: object) -> dict[str, Any]:
    """As a scenario's file says it."""
    return {"instance": "decode-1", "http": words}


def test_another_status_instead_of_the_answer(tmp_path: Path) -> None:
    (got,) = answers(tmp_path, [http(status=503)], [COMPLETIONS])
    assert got[0] == 503
    assert json.loads(got[1])["error"]["code"] == 503


def test_a_stream_is_cut_after_its_chunks(tmp_path: Path) -> None:
    assert answers(tmp_path, [http(after_chunks=3)], [COMPLETIONS]) == [
        [200, b"0", b"1", b"2", "cut"]
    ]


def test_the_cut_of_one_request_waits_for_an_answer_that_is_long_enough(tmp_path: Path) -> None:
    got = answers(
        tmp_path,
        [http(after_chunks=1, request=2)],
        [COMPLETIONS] * 5,
        lengths=[4, 1, 1, 4, 4],
    )
    assert got == [WHOLE, [200, b"0", b""], [200, b"0", b""], [200, b"0", "cut"], WHOLE]


def test_an_empty_answer_and_one_that_is_no_json(tmp_path: Path) -> None:
    assert answers(tmp_path, [http(body="")], [COMPLETIONS]) == [[200, b""]]
    assert answers(tmp_path, [http(body="{", status=201)], [COMPLETIONS]) == [[201, b"{"]]


def test_a_connection_that_breaks(tmp_path: Path) -> None:
    assert answers(tmp_path, [http(reset=True)], [COMPLETIONS]) == [["reset"]]


def test_a_late_answer_is_whole_unless_told_otherwise(tmp_path: Path) -> None:
    assert answers(tmp_path, [http(delay=0.01)], [COMPLETIONS]) == [WHOLE]
    (late,) = answers(tmp_path, [http(delay=0.01, status=503)], [COMPLETIONS])
    assert late[0] == 503


@pytest.mark.parametrize("words", [{"reset": True, "status": 500}, {"body": "", "after_chunks": 1}])
def test_words_that_contradict_each_other(words: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"reset|after_chunks"):
        scenario(http(**words))


def test_only_the_nth_completion_request(tmp_path: Path) -> None:
    paths = ["/health", COMPLETIONS, "/v1/chat/completions", COMPLETIONS]
    got = answers(tmp_path, [http(request=2)], paths)
    assert [one[0] for one in got] == [200, 200, 500, 200]
    assert got[3] == WHOLE


def test_faults_may_change_while_the_engine_runs(tmp_path: Path) -> None:
    """Then requests are counted anew."""
    from twin_engine.http_faults import FaultsOfThisInstance

    write_engine_faults(tmp_path, scenario(http(status=500, request=2)))
    faults = FaultsOfThisInstance("decode-1", tmp_path)
    assert [faults.of_next_request() is None for _ in range(3)] == [True, False, True]
    write_engine_faults(tmp_path, scenario(), later=True)
    assert [faults.of_next_request() is None for _ in range(3)] == [True, True, True]
    write_engine_faults(tmp_path, scenario(http(status=503, request=2)), later=True)
    assert [faults.of_next_request() is None for _ in range(3)] == [True, False, True]


def test_an_engine_is_made_ready_for_faults_that_come_later(tmp_path: Path) -> None:
    write_engine_faults(tmp_path, scenario(), later=True)
    env = {"TWIN_STATE": str(tmp_path), "PD_INSTANCE": "decode-2"}
    assert middleware(env) == ["twin_engine.http_faults.HttpFaults"]


def test_the_engine_gets_the_middleware_only_where_it_is_needed(tmp_path: Path) -> None:
    write_engine_faults(tmp_path, scenario({"instance": "decode-1", "http": {"status": 500}}))
    env = {"TWIN_STATE": str(tmp_path), "PD_INSTANCE": "decode-1"}
    added = middleware(env)
    assert added == ["twin_engine.http_faults.HttpFaults"]
    assert adapt(["serve", "m"], "127.0.0.2", added)[-2:] == ["--middleware", added[0]]
    assert middleware(env | {"PD_INSTANCE": "decode-2"}) == []
    assert middleware({}) == []


# --- processes ------------------------------------------------------------------------------------

# A worker whose phase comes, twice: says so each time that it survives.
WORKER = """
import sys
from twin_engine.faults import Counter, faults_of_this_instance
counter = Counter(faults_of_this_instance())
for _ in range(2):
    counter.happened(rank=int(sys.argv[1]))
    print("alive", flush=True)
"""


def worker(state: Path, rank: int, instance: str = "decode-1") -> subprocess.Popen[str]:
    env = {"PYTHONPATH": str(SITE), "TWIN_STATE": str(state), "PD_INSTANCE": instance}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(rank)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_rank_is_killed_at_its_nth_time_and_only_once(tmp_path: Path) -> None:
    fault = {"instance": "decode-1", "at": "pulling", "do": "kill", "rank": 1, "request": 2}
    write_engine_faults(tmp_path, scenario(fault))
    for rank, instance, expected in (
        (0, "decode-1", (0, "alive\nalive\n")),
        (1, "decode-2", (0, "alive\nalive\n")),
        (1, "decode-1", (-signal.SIGKILL, "alive\n")),
        (1, "decode-1", (0, "alive\nalive\n")),  # it was started again
    ):
        process = worker(tmp_path, rank, instance)
        output, _ = process.communicate(timeout=20)
        assert (process.returncode, output) == expected


def test_a_paused_instance_stops_with_its_whole_process_group(tmp_path: Path) -> None:
    fault = {"instance": "decode-1", "at": "decoding", "do": "pause"}
    write_engine_faults(tmp_path, scenario(fault))
    process = worker(tmp_path, 0)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=20)[0] == "alive\nalive\n"


def test_processes_without_faults_are_not_touched(tmp_path: Path) -> None:
    write_engine_faults(tmp_path, scenario())
    process = worker(tmp_path, 0)
    assert process.communicate(timeout=20)[0] == "alive\nalive\n"


# --- the proxy ------------------------------------------------------------------------------------

PROXY = """
import asyncio
from proxy.server import Proxy

class Served(Proxy):
    def __init__(self):
        pass

async def main():
    for number in range(3):
        print(f"request {number + 1}", flush=True)
        try:
            await Proxy._generate(Served(), None, "/v1/completions", False)
        except AttributeError:
            pass  # our proxy's own work, for which it is not set up here

asyncio.run(main())
"""


def proxy(state: Path) -> subprocess.Popen[str]:
    env = {"PYTHONPATH": f"{PROJECT}:{SITE}", "TWIN_STATE": str(state), "PD_INSTANCE": "proxy"}
    return subprocess.Popen(
        [sys.executable, "-c", PROXY],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_proxy_is_killed_at_its_nth_request(tmp_path: Path) -> None:
    fault = {"instance": "proxy", "at": "serving", "do": "kill", "request": 2}
    write_engine_faults(tmp_path, scenario(fault))
    process = proxy(tmp_path)
    assert process.communicate(timeout=20)[0] == "request 1\nrequest 2\n"
    assert process.returncode == -signal.SIGKILL


def test_a_proxy_without_faults_is_not_touched(tmp_path: Path) -> None:
    write_engine_faults(tmp_path, scenario())
    process = proxy(tmp_path)
    assert process.communicate(timeout=20)[0] == "request 1\nrequest 2\nrequest 3\n"


@pytest.mark.parametrize(
    "fault",
    [
        {"instance": "proxy", "at": "pulling", "do": "kill"},
        {"instance": "decode-1", "at": "serving", "do": "kill"},
        {"instance": "proxy", "at": "serving", "do": "kill", "rank": 0},
    ],
)
def test_phases_of_the_proxy_are_its_own(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"serving|ranks"):
        scenario(fault)
