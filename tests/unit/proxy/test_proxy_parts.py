"""The parts that decide, alone: breaker, policies, chunk frames, bodies, command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from proxy import http1, rewrite
from proxy.balancer import POLICIES, Address, Group, Instance, Lease, Role
from proxy.breaker import FIRST_PAUSE, LONGEST_PAUSE, Breaker, State
from proxy.cli import UsageError, config_of
from proxy.codec import loads
from proxy.upstream import Pool

# -- breaker


def test_breaker_takes_out_after_failures_in_a_row() -> None:
    breaker = Breaker(3)
    for _ in range(2):
        breaker.failed(0.0, "500")
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0, "500")
    assert breaker.state is State.UP
    breaker.failed(0.0, "answered 500")
    assert (breaker.state, breaker.reason) == (State.OUT, "answered 500")


def test_breaker_takes_out_at_once_when_nobody_listens_and_back_with_the_first_probe() -> None:
    breaker = Breaker(3)
    breaker.failed(0.0, "connection refused", refused=True)
    assert breaker.state is State.OUT
    breaker.probed(0.01)
    assert breaker.state is State.UP


def test_breaker_tries_a_failing_instance_after_its_pause_and_longer_each_time() -> None:
    breaker = Breaker(1)
    now, pause = 0.0, FIRST_PAUSE
    breaker.failed(now, "500")
    for _ in range(8):
        breaker.probed(now + pause * 0.99)
        assert breaker.state is State.OUT
        now += pause
        breaker.probed(now)
        assert breaker.state is State.TRIAL
        breaker.failed(now, "500")
        assert breaker.state is State.OUT
        pause = min(pause * 2, LONGEST_PAUSE)
    breaker.probed(now + pause)
    breaker.succeeded()
    assert breaker.state is State.UP


# -- balancer


def group(policy: str, count: int = 3) -> Group:
    made = Group(Role.DECODE, POLICIES[policy])
    for port in range(1, count + 1):
        pool = cast(Pool, None)  # choosing needs no connection
        made.instances.append(Instance(Role.DECODE, Address("h", port), pool, Breaker(1)))
    return made


def test_least_load_counts_tokens_not_requests() -> None:
    it = group("least-load", 2)
    long = Lease(it.instances[0], 30_000)
    leases = []
    for _ in range(5):
        chosen = it.pick(b"")
        assert chosen is it.instances[1]
        leases.append(Lease(chosen, 100))
    long.release()
    assert it.pick(b"") is it.instances[0]


def test_least_load_takes_turns_when_nobody_has_load() -> None:
    it = group("least-load")
    assert len({it.pick(b"") for _ in range(3)}) == 3


def test_round_robin_takes_turns_whatever_the_load() -> None:
    it = group("round-robin")
    Lease(it.instances[0], 10**9)
    assert len({it.pick(b"") for _ in range(3)}) == 3


def test_prefix_affinity_keeps_a_prefix_and_spreads_many() -> None:
    it = group("prefix-affinity")
    assert len({it.pick(b"same system prompt") for _ in range(20)}) == 1
    assert len({it.pick(b"prompt %d" % i) for i in range(60)}) == 3


def test_prefix_affinity_moves_only_the_prompts_of_an_instance_that_goes() -> None:
    it = group("prefix-affinity")
    keys = [b"prompt %d" % i for i in range(60)]
    before = {key: it.pick(key) for key in keys}
    gone = it.instances.pop()
    moved = [key for key in keys if it.pick(key) is not before[key]]
    assert moved
    assert all(before[key] is gone for key in moved)


def test_prefix_affinity_leaves_an_overloaded_instance() -> None:
    it = group("prefix-affinity")
    usual = it.pick(b"hot")
    assert usual is not None
    Lease(usual, 100_000)
    assert it.pick(b"hot") is not usual


def test_a_lease_gives_back_once() -> None:
    instance = group("least-load").instances[0]
    lease = Lease(instance, 5)
    lease.release()
    lease.release()
    assert (instance.in_flight, instance.tokens) == (0, 0)


def test_an_instance_on_trial_gets_one_request_while_others_serve() -> None:
    it = group("round-robin", 2)
    it.instances[0].breaker.state = State.TRIAL
    picked = [it.pick(b"") for _ in range(2)]
    assert it.instances[0] in picked
    Lease(it.instances[0], 1)
    assert [it.pick(b"") for _ in range(4)] == [it.instances[1]] * 4
    it.instances[1].draining = True
    assert it.pick(b"") is it.instances[0]  # better than nobody


# -- chunk frames

STREAM = b"".join(http1.frame(p) for p in (b"a", "é世🙂".encode(), b"0\r\n\r\n")) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_chunks_are_found_however_they_are_cut(size: int) -> None:
    scanner = http1.ChunkScanner()
    out = b"".join(scanner.feed(STREAM[i : i + size]) for i in range(0, len(STREAM), size))
    assert scanner.done
    assert out == STREAM[:-5]
    assert http1.payload_of(out) == "aé世🙂0\r\n\r\n".encode()


def test_a_chunk_that_is_half_there_is_not_passed_on() -> None:
    scanner = http1.ChunkScanner()
    assert scanner.feed(http1.frame(b"whole") + b"a\r\nhalf") == http1.frame(b"whole")
    assert not scanner.done


def test_trailers_end_a_stream() -> None:
    scanner = http1.ChunkScanner()
    assert scanner.feed(b"1\r\na\r\n0\r\nx-sum: 1\r\n") == b"1\r\na\r\n"
    assert scanner.feed(b"\r\n") == b""
    assert scanner.done


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\na\r\n",
        b"-1\r\na\r\n",
        b"+1\r\na\r\n",
        b"ffffffffff\r\n",
        b"1" * 300,
        b"0\r\n\r\nHTTP",
    ],
    ids=repr,
)
def test_wrong_chunks_are_errors(data: bytes) -> None:
    with pytest.raises(http1.ProtocolError):
        http1.ChunkScanner().feed(data)


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-x",
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip",
    ],
    ids=repr,
)
def test_wrong_heads_are_errors(head: bytes) -> None:
    with pytest.raises(http1.ProtocolError):
        http1.parse_head(head)


def test_head() -> None:
    head = http1.parse_head(
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 7\r\nConnection: close\r\n"
        b"Content-Type: application/json"
    )
    assert (head.status, head.length, head.keep_alive) == (429, 7, False)
    assert (head.passed, head.content_type) == (b"Retry-After: 3\r\n", b"application/json")


# -- bodies


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a"}',
        b'{"prompt": "}"}\n ',
        b'{ "prompt" : "a" , "seed": 18446744073709551616 }',
    ],
    ids=repr,
)
def test_decoder_gets_the_clients_bytes_with_one_more_key(raw: bytes) -> None:
    sent = rewrite.decode_body(rewrite.read(raw, chat=False), {"x": [1]})
    assert sent == raw.rstrip()[:-1] + b',"kv_transfer_params":{"x":[1]}}'


def test_release_asks_for_one_token_of_the_clients_prompt() -> None:
    ask = rewrite.read(b'{"prompt":"a","max_tokens":99999,"stream":true}', chat=False)
    sent: dict[str, Any] = rewrite.loads(rewrite.release_body(ask, {"x": 1}))
    assert sent == {
        "prompt": "a",
        "max_tokens": 1,
        "stream": False,
        "ignore_eos": True,
        "kv_transfer_params": {"x": 1},
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "a\\u00e9\\n", "n": 1.5, "x": null}',
        '{"prompt": "你好", "deep": [[{"a": true}]]}',
        '{"twice": 1, "twice": 2}',
        "[18446744073709551615]",
    ],
)
def test_every_parser_reads_the_same(text: str) -> None:
    assert loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', '{"a": 1} x', '"\xff"', "{'a': 1}"])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text.encode("latin-1"))


# -- command line

GUIDE = (
    "--host 192.0.0.1 --port 8080 --prefiller-hosts 192.0.0.1 --prefiller-port 13700 "
    "--decoder-hosts 192.0.0.2 192.0.0.3 --decoder-ports 13700 13700"
)


def test_the_guides_command_line() -> None:
    config = config_of(GUIDE.split())
    assert (config.host, config.port) == ("192.0.0.1", 8080)
    assert [a.label for a in config.prefillers] == ["192.0.0.1:13700"]
    assert [a.label for a in config.decoders] == ["192.0.0.2:13700", "192.0.0.3:13700"]


def test_ipv6_addresses() -> None:
    line = "--prefiller-hosts ::1 --prefiller-ports 1 --decoder-hosts [::1] --decoder-ports 2"
    config = config_of(line.split())
    assert [a.label for a in config.prefillers + config.decoders] == ["[::1]:1", "[::1]:2"]


FILE = """
port = 9000
policy = "prefix-affinity"
gap_seconds = 30
prefillers = [{host = "a", port = 1, name = "prefill-1"}]
decoders = [{host = "b", port = 1}, {host = "b", port = 2}]
"""


def test_file_with_flags_on_top(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE)
    config = config_of(["--config", str(path), "--port", "9001"])
    assert (config.port, config.policy, config.gap_seconds) == (9001, "prefix-affinity", 30.0)
    assert [a.label for a in config.prefillers + config.decoders] == ["prefill-1", "b:1", "b:2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gap_seconds = 30", "gap_second = 30"), "unknown key 'gap_second'"),
        (("port = 9000", 'port = "x"'), "port must be int, got 'x'"),
        (("port = 9000", "port = 70000"), "a port is 1 to 65535"),
        (("gap_seconds = 30", "gap_seconds = -1"), "must be above 0"),
        (('"prefix-affinity"', '"best"'), "one of least-load"),
        (("port = 2}", "port = 1}"), "listed twice"),
        (('{host = "b", port = 2}', "3"), "decoders takes"),
        (("port = 9000", "port ="), "not TOML"),
    ],
)
def test_wrong_files_are_one_clear_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE.replace(*change))
    with pytest.raises(UsageError, match=message) as caught:
        config_of(["--config", str(path)])
    assert "\n" not in str(caught.value)


def test_hosts_and_ports_must_match_in_number() -> None:
    with pytest.raises(UsageError, match="names 2 and --decoder-ports 1"):
        config_of(GUIDE.replace("13700 13700", "13700").split())


def test_no_decoder() -> None:
    with pytest.raises(UsageError, match="no decoder"):
        config_of(GUIDE.split(" --decoder-hosts")[0].split())
