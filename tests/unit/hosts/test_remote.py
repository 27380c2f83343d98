"""Commands and files on a host, by the twin's SSH server and by OpenSSH's."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ssh_servers import Server, lives

from pd_validate.errors import CommandTimeout, HostUnreachable, LabError
from pd_validate.hosts import remote
from pd_validate.hosts.remote import RemoteHost
from pd_validate.waiting import wait_for

MEGABYTE = 1 << 20


def test_output_and_exit_code_come_back(machine: RemoteHost) -> None:
    done = machine.run("echo out; echo err >&2; exit 7", timeout=5)
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert done.command == "echo out; echo err >&2; exit 7"
    assert 0 < done.seconds < 5


@pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("KILL", 137), ("SEGV", 139)])
def test_a_death_by_signal_n_is_128_plus_n(machine: RemoteHost, signal: str, code: int) -> None:
    assert machine.run(f"kill -{signal} $$", timeout=5).exit_code == code


def test_a_command_that_does_not_exist_is_no_exception(machine: RemoteHost) -> None:
    done = machine.run("no-such-command-here", timeout=5)
    assert done.exit_code == 127
    assert "not found" in done.stderr


def test_quotes_newlines_and_unicode_arrive_as_they_are(machine: RemoteHost) -> None:
    awkward = "a 'b' \"c\" $HOME `id` \\ \n 昇腾 é"
    done = machine.run('printf %s "$VALUE"', timeout=5, env={"VALUE": awkward})
    assert done.stdout == awkward
    assert machine.run("printf '%s' '昇腾 | && \"x\"'", timeout=5).stdout == '昇腾 | && "x"'


def test_output_that_is_no_utf8_is_still_readable(machine: RemoteHost) -> None:
    assert machine.run(r"printf 'a\377b'", timeout=5).stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_input_reaches_the_command_and_ends(machine: RemoteHost) -> None:
    assert machine.run("cat", timeout=5, stdin=b"\x00\xc3\xa9").stdout == "\x00é"
    assert machine.run("cat", timeout=5).stdout == ""  # without input: end of file at once


def test_input_that_nobody_reads_holds_nothing_up(machine: RemoteHost) -> None:
    done = machine.run("exit 3", timeout=10, stdin=bytes(8 * MEGABYTE))
    assert done.exit_code == 3


def test_big_output_on_both_streams_at_once(machine: RemoteHost) -> None:
    half = 8 * MEGABYTE
    command = f"head -c {half} /dev/zero | tr '\\0' e >&2; head -c {half} /dev/zero | tr '\\0' o"
    done = machine.run(command, timeout=30)
    assert done.stdout == "o" * half
    assert done.stderr == "e" * half


def test_endless_output_ends_in_an_error_not_in_our_memory(
    machine: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_OUTPUT", MEGABYTE)
    with pytest.raises(LabError, match=r"d1: `yes` printed more than 1048576 bytes"):
        machine.run("yes", timeout=20)


def test_a_hung_command_is_a_timeout_and_ends_on_the_host_too(
    machine: RemoteHost, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(CommandTimeout, match=r"d1: .* did not end within 1 s.*half way") as failure:
        machine.run(f"echo $$ > {pid_file}; echo half way; sleep 600", timeout=1)
    assert "sleep 600" in str(failure.value)
    pid = int(pid_file.read_text())
    wait_for(lambda: None if lives(pid) else True, seconds=5, what="its end on the host")
    assert machine.run("echo fine", timeout=5).stdout == "fine\n"


def test_what_stays_in_the_background_and_holds_the_output_is_a_timeout(
    machine: RemoteHost,
) -> None:
    with pytest.raises(CommandTimeout, match="started it"):
        machine.run("echo started it; sleep 3 &", timeout=1)


def test_a_background_process_without_our_output_holds_nothing_up(machine: RemoteHost) -> None:
    assert machine.run("sleep 9 > /dev/null 2>&1 & echo done", timeout=8).exit_code == 0


def test_a_long_command_is_shortened_in_messages(machine: RemoteHost) -> None:
    with pytest.raises(CommandTimeout) as failure:
        machine.run("sleep 5; : " + "x" * 4000, timeout=0.5)
    assert len(str(failure.value)) < 400


def test_environment_values_stay_out_of_messages(machine: RemoteHost) -> None:
    with pytest.raises(CommandTimeout) as failure:
        machine.run("sleep 5", timeout=0.5, env={"TOKEN": "hunter2"})
    assert "hunter2" not in str(failure.value)


def test_python_runs_there_with_arguments_and_unicode(machine: RemoteHost) -> None:
    source = "import sys, os\nprint(sys.argv[1:], os.getcwd(), '昇腾')\nsys.exit(4)\n"
    done = machine.python(source, args=["a b", "'"], timeout=10)
    assert done.stdout == "['a b', \"'\"] / 昇腾\n"
    assert done.exit_code == 4


def test_eight_threads_share_one_connection(machine: RemoteHost) -> None:
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda n: machine.run(f"echo {n}", timeout=20).stdout, range(16)))
    assert outputs == [f"{n}\n" for n in range(16)]
    seen = machine.run("echo $SSH_CONNECTION", timeout=5).stdout
    assert seen == machine.run("echo $SSH_CONNECTION", timeout=5).stdout


def test_more_commands_than_sessions_wait_for_their_turn(machine: RemoteHost) -> None:
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda _: machine.run("sleep 0.3", timeout=10), range(12)))
    assert [each.exit_code for each in done] == [0] * 12


# --- files --------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was_put(machine: RemoteHost, tmp_path: Path) -> None:
    data = os.urandom(3 * MEGABYTE)
    path = tmp_path / "new directory" / "it's a file"
    machine.put(data, str(path), mode=0o600)
    assert machine.get(str(path)) == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o055 == 0o055  # others may look inside
    assert os.listdir(path.parent) == [path.name]  # no temporary file


def test_put_replaces_the_whole_file(machine: RemoteHost, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"longer than the new one")
    machine.put(b"new", str(path))
    assert path.read_bytes() == b"new"
    machine.put(b"", str(path))
    assert path.read_bytes() == b""


def test_readers_never_see_half_a_file(machine: RemoteHost, tmp_path: Path) -> None:
    path = tmp_path / "file"
    versions = [bytes([n]) * MEGABYTE for n in range(3)]
    machine.put(versions[0], str(path))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [machine.put(each, str(path)) for each in versions])
        while not writing.done():
            assert path.read_bytes() in versions
        writing.result()


def test_get_reads_the_end_of_a_log(machine: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\nlast\n")
    assert machine.get(str(tmp_path / "log"), limit=5) == b"last\n"
    assert machine.get(str(tmp_path / "log"), limit=1000) == b"first\nlast\n"


def test_a_missing_file_is_named(machine: RemoteHost, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"d1: {tmp_path}/nothing does not exist"):
        machine.get(str(tmp_path / "nothing"))


def test_what_cannot_be_read_or_written_says_why(machine: RemoteHost, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"d1: cannot read .*[Dd]irectory"):
        machine.get(str(tmp_path))
    with pytest.raises(LabError, match=r"d1: cannot write .*it is a directory"):
        machine.put(b"", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"d1: cannot write .*file"):
        machine.put(b"", str(tmp_path / "file" / "below"))


# --- the connection -----------------------------------------------------------------------------


def test_a_dropped_connection_is_opened_again(machine: RemoteHost) -> None:
    first = machine.run("echo $SSH_CONNECTION", timeout=5).stdout
    machine.drop()
    second = machine.run("echo $SSH_CONNECTION", timeout=5).stdout
    assert first != second


def test_a_command_that_loses_its_connection_is_not_repeated(
    machine: RemoteHost, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: machine.run(f"echo x >> {count}; sleep 5", timeout=10))
        wait_for(lambda: count.exists() or None, seconds=5, what="the command", interval=0.02)
        machine.drop()
        with pytest.raises(HostUnreachable, match=r"was lost while `echo x"):
            running.result()
    assert count.read_text() == "x\n"


def test_a_closed_host_says_so(server: Server) -> None:
    with server.host() as closed:
        pass
    with pytest.raises(HostUnreachable, match="has been closed"):
        closed.run("true", timeout=5)
