"""What CANN and the kernel say on a host comes along with the report, without secrets."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from foreign import Foreign

from pd_validate.hosts.remote import RemoteHost
from pd_validate.report.logs import SHOWN, write_logs
from pd_validate.report.places import Places
from pd_validate.report.redact import Redactor
from pd_validate.topology.system_logs import system_logs

DMESG = """#!/bin/sh
echo "[1.0] input: Power Button"
echo "[2.0] [ascend] [devdrv] device 6 heartbeat lost"
"""


@pytest.fixture
def home(foreign: Foreign) -> Path:
    return foreign.hosts.hosts["d1"].directory


def fetched(foreign: Foreign) -> dict[str, bytes]:
    with RemoteHost.of_cluster(foreign.hosts.cluster, "d1") as host:
        return system_logs(host, [], seconds=3600, timeout=60)


def test_this_runs_plog_and_the_kernels_lines_about_npus(foreign: Foreign, home: Path) -> None:
    plog = home / "ascend" / "log" / "debug" / "plog" / "plog-77.log"
    plog.parent.mkdir(parents=True)
    plog.write_text("[ERROR] HCCL link timeout\n")
    old = plog.with_name("plog-1.log")
    old.write_text("of last week\n")
    os.utime(old, (1, 1))
    dmesg = home / "bin" / "dmesg"
    dmesg.write_text(DMESG)
    dmesg.chmod(0o755)
    try:
        found = fetched(foreign)
    finally:
        dmesg.unlink()
    assert found.pop("kernel.txt") == b"[2.0] [ascend] [devdrv] device 6 heartbeat lost\n"
    assert list(found.values()) == [b"[ERROR] HCCL link timeout\n"]
    assert next(iter(found)).endswith("ascend/log/debug/plog/plog-77.log")


def test_kernel_messages_that_may_not_be_read_say_so(foreign: Foreign, home: Path) -> None:
    dmesg = home / "bin" / "dmesg"
    dmesg.write_text("#!/bin/sh\necho 'Operation not permitted' >&2; exit 1\n")
    dmesg.chmod(0o755)
    try:
        found = fetched(foreign)
    finally:
        dmesg.unlink()
    assert found["kernel.txt"] == b"(not readable: Operation not permitted)\n"


def test_a_report_has_the_end_of_a_log_and_an_archive_has_all(tmp_path: Path) -> None:
    places = Places(tmp_path)
    line = "a line of a log\n"
    long = line * (2 * SHOWN // len(line))
    texts = {"decode-1.log": f"password=hunter22\n{long}", "d1/plog/x.log": "short\n"}
    attached = write_logs(texts, places, Redactor(["s3cret"]))
    shown = (tmp_path / "logs" / "decode-1.log").read_text()
    assert len(shown) <= SHOWN + 100
    assert "all of it is in logs.tar.gz" in shown.splitlines()[0]
    assert shown.splitlines()[1:3] == [line.strip()] * 2
    with tarfile.open(places.logs_archive) as archive:
        member = archive.extractfile("logs/decode-1.log")
        assert member is not None
        whole = member.read().decode()
    assert whole.endswith(long)
    assert "hunter22" not in whole
    assert [a.path for a in attached] == ["logs/decode-1.log", "logs/d1/plog/x.log", "logs.tar.gz"]


def test_an_earlier_runs_logs_do_not_stay(tmp_path: Path) -> None:
    places = Places(tmp_path)
    write_logs({"decode-1.log": "old\n"}, places, Redactor())
    assert write_logs({}, places, Redactor()) == []
    assert list(places.logs.iterdir()) == []
    assert not places.logs_archive.exists()
