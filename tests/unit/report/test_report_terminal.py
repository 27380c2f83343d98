"""What is printed: plain where it must be plain, inside the width, with the culprit in it."""

import io
import os
import pty
import threading

import pytest
from examples import EXAMPLES, corrupted_block, dead_link, failed_bringup, green
from rich.cells import cell_len

from pd_validate.findings import Finding, Where
from pd_validate.report.record import RunRecord
from pd_validate.report.terminal import HostProgress, console_for, print_summary


def summary(record, *, width=100, encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print_summary(console_for(stream, width=width), record, None)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("width", [60, 100, 160])
def test_no_control_codes_and_no_line_wider_than_the_width(name, width):
    text = summary(EXAMPLES[name](), width=width)
    assert "\x1b" not in text
    ids = {test.id for test in EXAMPLES[name]().tests}
    for line in text.splitlines():
        # A test id is one word to copy; breaking it would make it useless.
        if not any(test_id in line for test_id in ids):
            assert cell_len(line.rstrip()) <= width, line


def test_culprit_expected_got_next_step_are_told():
    text = summary(dead_link())
    assert " 1. FAIL link.down at d1 npu6  [physical link]" in text
    assert "link status DOWN since 2026-11-20 08:57:12" in text
    assert "Check cable, optical module and switch port" in text
    assert "explains 6 more findings" in text
    assert "blocked 11 tests by link.down" in text
    assert "exit 10: the cluster is not fit (pre-flight)" in text


def test_matrix_names_the_npus():
    line = next(li for li in summary(dead_link()).splitlines() if li.startswith("net-health"))
    assert line.split() == ["net-health", "ok", "FAIL", "npu6", "?", "npu2", "-"]


def test_green_run_says_so():
    text = summary(green())
    assert "PASS  cluster atlas-1p2d; no findings" in text
    assert "Nothing was left behind (3 hosts looked at)." in text


def test_leftovers_are_listed():
    text = summary(failed_bringup())
    assert "Nothing was left behind" not in text
    assert "d1: process group 48702" in text


def test_chinese_text_passes_and_what_an_encoding_lacks_is_replaced():
    assert "的的" in summary(corrupted_block(), encoding="gb18030")
    assert "'??" in summary(corrupted_block(), encoding="ascii").replace(" ", "")


def test_columns_stand_straight_beside_chinese_names():
    text = dead_link().model_dump_json().replace('"d1"', '"节点一"')
    table = summary(RunRecord.model_validate_json(text)).partition("\n\n")[0].splitlines()
    head, link = (next(li for li in table if li.startswith(key)) for key in ("check ", "link.st"))

    def column(line, word):
        return cell_len(line.partition(word)[0])

    assert column(head, "节点一") == column(link, "FAIL npu6")
    assert column(head, "d2") == column(link, "ok       -")


def test_secrets_are_not_printed():
    record = dead_link()
    got = "login with rosebud and password=hunter2"
    record.findings.append(Finding(id="host.auth", where=Where(host="p1"), got=got))
    out = io.StringIO()
    print_summary(console_for(out), record, secrets=["rosebud"])
    assert "login with [secret] and password=[secret]" in out.getvalue()


def test_columns_counts_without_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert console_for(io.StringIO()).width == 70
    monkeypatch.delenv("COLUMNS")
    assert console_for(io.StringIO()).width == 100


def test_progress_without_a_terminal_is_plain_lines():
    out = io.StringIO()
    with HostProgress(console_for(out), ["p1", "d1"]) as progress:
        progress.start("p1", "starting prefill-1")
        progress.done("p1", "ready")
        progress.start("d1", "starting decode-1")
        progress.fail("d1", "exit code 1")
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert len(lines) == 4
    assert lines[0].endswith("p1  ...  starting prefill-1")
    assert "p1  ok   starting prefill-1: ready (" in lines[1]
    assert "d1  FAIL starting decode-1: exit code 1 (" in lines[3]


def test_progress_lines_of_many_threads_do_not_mix():
    out = io.StringIO()
    hosts = [f"h{number:02d}" for number in range(20)]
    with HostProgress(console_for(out), hosts) as progress:

        def work(host):
            for _ in range(10):
                progress.start(host, f"facts of {host}")
                progress.done(host)

        threads = [threading.Thread(target=work, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 20 * 10 * 2
    for line in lines:
        _, host, _, _, _, named, *_ = line.split()
        assert host == named


@pytest.fixture
def terminal():
    """A real pseudo terminal; gives (stream to write to, function that returns what came)."""
    leader, follower = pty.openpty()
    stream = os.fdopen(follower, "w", encoding="utf-8")

    def received():
        stream.flush()
        stream.close()
        parts = []
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed: all was read
                return b"".join(parts).decode()
            parts.append(part)

    yield stream, received
    os.close(leader)
    if not stream.closed:
        stream.close()


def test_progress_on_a_terminal_is_live_and_coloured(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream, received = terminal
    with HostProgress(console_for(stream), ["p1", "d1"]) as progress:
        progress.start("p1", "starting prefill-1")
        progress.done("p1", "ready")
    text = received()
    assert "\x1b[" in text
    assert "starting prefill-1: ready" in text


def test_no_color_is_respected_on_a_terminal(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream, received = terminal
    print_summary(console_for(stream, width=70), green())
    assert "\x1b[3" not in received()
