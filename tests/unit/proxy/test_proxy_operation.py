"""Running it: limits and queues, admin, the access log, start and drained end as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from backend import Fault, engines
from proxy_stand import PD, asynchronous, pd, right_text, until

from proxy import accesslog
from proxy.accesslog import AccessLog
from proxy.admission import Admission

ROOT = Path(__file__).parents[3]


@asynchronous
async def test_full_queue_is_429_with_retry_after() -> None:
    async with pd(max_concurrent=1, max_queue=1) as it:
        it.prefillers[0].fault = Fault(delay=0.2)
        asked = [asyncio.create_task(it.ask()) for _ in range(2)]
        await until(lambda: it.proxy.waiting == 1, "nobody waits")
        reply = await it.ask()
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert [(await a).status for a in asked] == [200, 200]
        await it.at_rest()
        assert await it.metric("pd_proxy_requests_total", status="429") == 1


@asynchronous
async def test_long_wait_in_the_queue_is_503_with_retry_after() -> None:
    async with pd(max_concurrent=1, queue_seconds=0.1) as it:
        it.prefillers[0].fault = Fault(delay=0.4, times=1)
        first = asyncio.create_task(it.ask())
        await until(lambda: it.prefillers[0].running == 1, "no prefill")
        reply = await it.ask()
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert (await first).status == 200
        assert (await it.ask()).status == 200


@asynchronous
async def test_a_place_that_comes_free_as_its_next_one_leaves() -> None:
    """The client that waits and the one that is served go in the same moment."""
    admission = Admission(places=1, queue=2, seconds=5)
    await admission.enter()
    waiting = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    waiting.cancel()
    admission.leave()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (admission.in_service, admission.waiting) == (0, 0)


# -- admin

KEY = {"Authorization": "Bearer key"}


async def admin(it: PD, method: str, path: str = "", body: object = None) -> tuple[int, object]:
    url = f"{it.url}/admin/instances{path}"
    async with it.session.request(method, url, json=body, headers=KEY) as response:
        return response.status, await response.json()


@asynchronous
async def test_admin_needs_the_key() -> None:
    async with pd(admin_key="key") as it:
        assert (await it.get("/admin/instances")).status == 401
        it.session.headers["Authorization"] = "Bearer other"
        assert (await it.get("/admin/instances")).status == 401
        assert (await admin(it, "GET"))[0] == 200
    async with pd() as it:
        assert (await admin(it, "GET"))[0] == 404


@asynchronous
async def test_admin_lists_adds_drains_and_removes() -> None:
    async with pd(admin_key="key", decoders=2) as it, engines(1, it.decoders[0].peers) as (new,):
        status, listed = await admin(it, "GET")
        assert status == 200
        assert [i["role"] for i in listed["instances"]] == ["prefill", "decode", "decode"]

        place = {"role": "decode", "host": "127.0.0.1", "port": new.port}
        assert (await admin(it, "POST", body=place))[0] == 200
        assert (await admin(it, "POST", body=place))[0] == 409
        for old in it.decoders:
            assert (await admin(it, "POST", f"/127.0.0.1:{old.port}/drain"))[0] == 200
        reply = await it.ask()
        assert reply.headers["x-pd-decode"] == f"127.0.0.1:{new.port}"
        for old in it.decoders:
            assert (await admin(it, "DELETE", f"/127.0.0.1:{old.port}"))[0] == 200
        assert it.proxy.decoders.available == 1
        assert (await admin(it, "DELETE", "/nobody:1"))[0] == 404


@asynchronous
async def test_draining_waits_for_the_instances_own_requests_only() -> None:
    async with pd(admin_key="key") as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.08)
        asked = [asyncio.create_task(it.ask()) for _ in range(2)]
        await until(lambda: all(d.running for d in it.decoders), "both decode")
        path = f"/127.0.0.1:{it.decoders[0].port}"
        assert (await admin(it, "POST", path + "/drain?seconds=0.01"))[0] == 409
        assert (await admin(it, "POST", path + "/drain"))[0] == 200
        assert it.decoders[0].running == 0
        assert [(await a).text for a in asked] == [right_text()] * 2
        assert (await admin(it, "POST", path + "/resume"))[0] == 200
        assert it.proxy.decoders.available == 2


@asynchronous
async def test_two_who_remove_the_same_instance_and_one_who_wants_it_back() -> None:
    async with pd(admin_key="key") as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.05)
        asked = [asyncio.create_task(it.ask()) for _ in range(2)]
        await until(lambda: all(d.running for d in it.decoders), "both decode")
        one, other = (f"/127.0.0.1:{d.port}" for d in it.decoders)
        removals = [asyncio.create_task(admin(it, "DELETE", one)) for _ in range(2)]
        removals.append(asyncio.create_task(admin(it, "DELETE", other)))
        await until(lambda: it.proxy.decoders.available == 0, "none drains")
        assert (await admin(it, "POST", other + "/resume"))[0] == 200
        assert sorted([(await r)[0] for r in removals]) == [200, 409, 409]
        assert it.proxy.decoders.available == 1
        assert [(await a).text for a in asked] == [right_text()] * 2


@pytest.mark.parametrize(
    "body",
    [{}, [], {"role": "x", "host": "h", "port": 1}, {"role": "decode", "host": "h", "port": "1"}],
    ids=str,
)
@asynchronous
async def test_admin_says_what_to_give(body: object) -> None:
    async with pd(admin_key="key") as it:
        status, answer = await admin(it, "POST", body=body)
        assert status == 400
        assert "port" in answer["error"]["message"]


# -- access log


@asynchronous
async def test_access_log_has_one_line_per_request(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with pd(decoders=1, access_log=str(log)) as it:
        ports = it.prefillers[0].port, it.decoders[0].port
        await it.ask(stream=True, headers={"X-Request-Id": "a", "Authorization": "Bearer secret"})
        await it.ask(n=2, headers={"X-Request-Id": "b"})
        it.prefillers[0].fault = Fault(status=400)
        await it.ask(headers={"X-Request-Id": "c"})
        it.prefillers[0].fault = Fault(delay=60)
        asked = asyncio.create_task(it.ask(headers={"X-Request-Id": "d"}))
        await until(lambda: it.prefillers[0].running == 1, "no prefill")
        asked.cancel()
        await it.at_rest()
    text = log.read_text()
    assert "secret" not in text
    lines = {line["id"]: line for line in map(json.loads, text.splitlines())}
    assert {i: (x["status"], x["outcome"]) for i, x in lines.items()} == {
        "a": (200, "ok"),
        "b": (200, "ok"),
        "c": (400, "engine-error"),
        "d": (499, "client-gone-in-prefill"),
    }
    first = lines["a"]
    assert (first["prefill"], first["decode"]) == tuple(f"127.0.0.1:{p}" for p in ports)
    assert 0 < first["prefill_ms"] <= first["first_ms"] <= first["total_ms"]
    assert (lines["b"]["path"], lines["b"]["reason"]) == ("decode-only", "n")


# -- drain


@asynchronous
async def test_stop_lets_requests_under_way_end_and_takes_no_new_ones() -> None:
    async with pd() as it:
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.08)
        asked = [asyncio.create_task(it.ask(stream=s)) for s in (False, True)]
        await until(lambda: sum(d.running for d in it.decoders) == 2, "both decode")
        stopped = asyncio.create_task(it.proxy.stop())
        await until(lambda: it.proxy.draining, "not draining")
        with pytest.raises(OSError, match="onnect"):
            await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":")[-1]))
        assert [(await a).text for a in asked] == [right_text()] * 2
        await stopped


@asynchronous
async def test_what_clients_leave_behind_in_a_drain_is_freed() -> None:
    """The client goes while the proxy drains: the decoder still frees the prefiller's KV."""
    async with pd(decoders=1) as it:
        it.decoders[0].fault = Fault(delay=0.2)
        asked = asyncio.create_task(it.ask(stream=True))
        await until(lambda: bool(it.decoders[0].seen), "no decode")
        stopped = asyncio.create_task(it.proxy.stop())
        await until(lambda: it.proxy.draining, "not draining")
        asked.cancel()
        await stopped
        assert it.proxy.metrics.aborts.value("decode") == 1
        assert it.held() == {}


# -- as a process


async def start(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *argv),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynchronous
async def test_process_serves_and_ends_drained_on_sigterm() -> None:
    """The real thing, on uvloop where it is installed."""
    async with pd() as it:  # for its engines and client
        for decoder in it.decoders:
            decoder.fault = Fault(token_delay=0.05)
        process = await start(
            *("--port", "0", "--prefiller-hosts", "127.0.0.1"),
            *("--prefiller-port", str(it.prefillers[0].port)),
            *("--decoder-hosts", "127.0.0.1", "127.0.0.1"),
            *("--decoder-ports", *(str(d.port) for d in it.decoders)),
        )
        try:
            assert process.stderr is not None
            said = (await asyncio.wait_for(process.stderr.readline(), 8)).decode()
            it.url = "http://" + said.split()[-1]
            replies = [asyncio.create_task(it.ask(stream=s, chat=s)) for s in (False, True)]
            await until(lambda: sum(d.running for d in it.decoders) == 2, "both decode")
            process.send_signal(signal.SIGTERM)
            assert [(await r).text for r in replies] == [right_text(), right_text(chat=True)]
            out, err = await asyncio.wait_for(process.communicate(), 8)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        assert [json.loads(line)["outcome"] for line in out.splitlines()] == ["ok", "ok"]
        assert err.decode() == "proxy drains\n"


@asynchronous
async def test_taken_port_is_one_line_and_exit_code_1() -> None:
    async with engines(1, {}) as (taken,):
        process = await start(
            *("--port", str(taken.port), "--prefiller-hosts", "h", "--prefiller-ports", "1"),
            *("--decoder-hosts", "h", "--decoder-ports", "1"),
        )
        _, err = await asyncio.wait_for(process.communicate(), 8)
        assert process.returncode == 1
        assert err.decode().startswith(f"proxy: cannot listen on 127.0.0.1:{taken.port}: ")
        assert err.count(b"\n") == 1


@asynchronous
async def test_an_access_log_that_nobody_reads_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output in a pipe whose reader is stopped: lines are lost, and it still ends."""
    monkeypatch.setattr(accesslog, "MOST_LINES", 10)
    monkeypatch.setattr(accesslog, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(accesslog, "CLOSE_SECONDS", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = AccessLog(str(pipe), asyncio.get_running_loop())
        for _ in range(3):  # one for the pipe, one for the writer, one that waits
            log.add("x" * 200_000 + "\n")
            await asyncio.sleep(0.05)
        for _ in range(50):
            log.add("y\n")
        log.close()
    finally:
        os.close(reader)
