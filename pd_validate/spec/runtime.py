"""Commands for a host's runtime: on the host, in a running container, or in one of ours.

Pure: argument lists in, argument lists out; nothing is interpreted by a shell, so no
quoting is needed here. A container of ours (`docker-run`) is started once per host and
run, with a process that does nothing, and everything is then executed inside it: a
signal to a `docker run` or `docker exec` client does not reliably reach what it started.

What a container needs is from vllm-ascend v0.10.1rc1, docs/source/tutorials/multi_node.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from pd_validate.errors import SpecError
from pd_validate.spec.models import (
    Cluster,
    DockerExecRuntime,
    DockerRunRuntime,
    HostRuntime,
)
from pd_validate.spec.profiles import devices_of, profile_of

RUN_LABEL = "pd-validate.run"
AnyRuntime = HostRuntime | DockerExecRuntime | DockerRunRuntime


def container_of(runtime: AnyRuntime, run_id: str) -> str | None:
    """The container that commands run in; None on the host itself."""
    if isinstance(runtime, DockerExecRuntime):
        return runtime.container
    return _ours(run_id) if isinstance(runtime, DockerRunRuntime) else None


def _ours(run_id: str) -> str:
    return f"pd-validate-{run_id}"


def wrap(
    runtime: AnyRuntime,
    argv: Sequence[str],
    *,
    run_id: str,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> tuple[str, ...]:
    """What to execute on the host so that `argv` runs where `runtime` says.

    `env` is added to the environment there, `cwd` must exist there. Standard input is
    passed on.
    """
    environment = [f"{name}={value}" for name, value in (env or {}).items()]
    container = container_of(runtime, run_id)
    if container is None:
        command = ("env", *environment, *argv) if environment else tuple(argv)
        if cwd is None:
            return command
        return ("sh", "-c", 'cd -- "$1" && shift && exec "$@"', "sh", cwd, *command)
    assert not isinstance(runtime, HostRuntime)
    command = (*shlex.split(runtime.docker), "exec", "--interactive")
    if cwd is not None:
        command += ("--workdir", cwd)
    for variable in environment:
        command += ("--env", variable)
    return (*command, container, *argv)


def start_container(cluster: Cluster, host: str, run_id: str) -> tuple[str, ...] | None:
    """The command that starts our container on `host`; None if the host has none of ours.

    The working directory and the model must exist on the host.

    It gets every NPU of the host, not only those in use: with a part of them the driver
    counts from 0 again, and the ids of the rank table would mean other devices.
    """
    runtime = cluster.runtime_of(host)
    if not isinstance(runtime, DockerRunRuntime):
        return None
    profile = profile_of(cluster)
    command = [*shlex.split(runtime.docker), "run", "--detach", "--rm", "--init"]
    command += ["--name", _ours(run_id), "--label", f"{RUN_LABEL}={run_id}"]
    command += ["--net=host", "--shm-size=1g"]
    nodes = [f"/dev/davinci{device}" for device in devices_of(cluster, host)]
    for node in (*nodes, *profile.device_nodes):
        command += ["--device", node]
    # --mount, not --volume: a source that is missing is an error, not a new directory.
    for path in (*profile.mounts, str(cluster.model.path)):
        command += ["--mount", f"type=bind,source={path},target={path},readonly"]
    workdir = cluster.workdir_of(host)
    command += ["--mount", f"type=bind,source={workdir},target={workdir}"]
    for mount in runtime.mounts:
        command += ["--volume", mount]
    return (*command, *runtime.args, "--entrypoint", "sleep", runtime.image, "infinity")


def check_can_stay(cluster: Cluster) -> None:
    """Raises SpecError if what is left running (`--keep-up`) would be in a container of ours.

    Such a container ends with its run; nobody else would ever remove it.
    """
    ours = [h for h in cluster.hosts if isinstance(cluster.runtime_of(h), DockerRunRuntime)]
    if ours:
        raise SpecError(
            f"hosts {', '.join(ours)}: a container of kind docker-run ends with its run, so "
            "nothing can be left running in it. Start the container yourself and name it: "
            "`runtime: {kind: docker-exec, container: NAME}`"
        )


def enter(cluster: Cluster, host: str, run_id: str) -> tuple[tuple[str, ...], ...]:
    """What a person types on `host` to be where its commands run; nothing on the host itself."""
    runtime = cluster.runtime_of(host)
    container = container_of(runtime, run_id)
    if container is None:
        return ()
    assert not isinstance(runtime, HostRuntime)
    start = start_container(cluster, host, run_id)
    shell = (*shlex.split(runtime.docker), "exec", "--interactive", "--tty", container, "bash")
    return (shell,) if start is None else (start, shell)


def remove_container(cluster: Cluster, host: str, run_id: str) -> tuple[str, ...] | None:
    """The command that ends and removes our container; None if the host has none of ours."""
    runtime = cluster.runtime_of(host)
    if not isinstance(runtime, DockerRunRuntime):
        return None
    return (*shlex.split(runtime.docker), "rm", "--force", _ours(run_id))
