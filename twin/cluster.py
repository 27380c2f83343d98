"""A whole twin: simulated hosts that run, their silicon's state, and the cluster file for them.

`TwinCluster.start` gives a `Cluster` like any other: addresses, ports, a key. From
there on nobody knows that the hosts are simulated.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, DockerExecRuntime, Host, Ssh
from pd_validate.spec.profiles import devices_of, profile_of
from twin.engine import VLLM_ASCEND_VARIABLE
from twin.fabric import Product, healthy_cluster
from twin.faults import break_host, environment_of, write_engine_faults
from twin.hosts import TwinError, TwinHost, TwinHosts, TwinHostSpec
from twin.model import make_model
from twin.names import check_names, layers_of
from twin.scenario import ProxyFault, Scenario

PROJECT = Path(__file__).parent.parent
CLUSTERS = PROJECT / "clusters"
_PREFIX = "pd-twin-"  # of a twin's directory; the process id of its owner follows
OF_SCENARIOS = PROJECT / "tests" / "scenarios" / "clusters"  # broken, or for breaking
OTHER_PROXY = "twin_proxy"  # module of twin/site that a scenario's `proxy` may break
DEFAULT_CLUSTER = CLUSTERS / "twin-1p2d.yaml"
# Another loopback network for all hosts, so that several twins can run at once.
NETWORK_VARIABLE = "PD_TWIN_NETWORK"
# Another interpreter for the hosts' `python3` and `vllm`: that of the guide's vLLM 0.10.1.1
# (scripts/make-guide-env.sh), or of any other.
PYTHON_VARIABLE = "PD_TWIN_PYTHON"
_PASSED_ON = (VLLM_ASCEND_VARIABLE,)  # from our environment to every host


def cache_directory() -> Path:
    """Where the model and vLLM's own caches are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pd-validate"


def cluster_file(name: str) -> Path:
    """A cluster file by path, or by its name in clusters/ (with or without .yaml)."""
    if not name:
        return DEFAULT_CLUSTER
    path = Path(name)
    known = [CLUSTERS / name, CLUSTERS / f"{name}.yaml", OF_SCENARIOS / name]
    return next((file for file in [path, *known] if file.is_file()), path)


def described_cluster(file: Path) -> Cluster:
    """The cluster of a twin before it is started: nobody knows its SSH ports yet.

    Raises SpecError for a wrong file.
    """
    model = cache_directory() / "tiny-qwen3-moe-2"
    described = load_cluster(file, environ={"PD_TWIN_MODEL": str(model), **os.environ})
    return _moved(described, os.environ.get(NETWORK_VARIABLE))


class TwinCluster:
    """Simulated hosts that run. Ends with `stop()`, as a context manager, or with its process."""

    def __init__(self, cluster: Cluster, hosts: TwinHosts, state: Path, undo: ExitStack) -> None:
        self.cluster = cluster
        self.hosts = hosts
        self.state = state
        self._undo = undo

    @classmethod
    def start(cls, file: Path = DEFAULT_CLUSTER, scenario: Scenario | None = None) -> Self:
        """Load the cluster file, make the model if it is not there, break what the scenario says.

        Raises SpecError for a wrong file, TwinError if a host does not start.
        """
        scenario = scenario or Scenario()
        described = described_cluster(file)
        make_model(described.model.path)
        product = Product(profile_of(described).product)
        fabric = healthy_cluster(
            {name: host.address for name, host in described.hosts.items()}, product
        )
        for name, machine in fabric.hosts.items():
            runtime = described.runtime_of(name)
            if isinstance(runtime, DockerExecRuntime):
                machine.containers = (runtime.container,)
        layers = layers_of(described.model.path)
        check_names(scenario, fabric, described.instances, layers)
        if OTHER_PROXY not in (described.proxy.command or ()):
            for number, fault in enumerate(scenario.faults):
                if isinstance(fault, ProxyFault):
                    raise scenario.mistake(
                        ("faults", number),
                        f"the proxy of {file.name} cannot be broken: "
                        "say `cluster: twin-other-proxy.yaml`",
                    )
        scenario.break_fabric(fabric)

        with ExitStack() as undo:
            _remove_dead_twins()
            root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            undo.callback(shutil.rmtree, root, ignore_errors=True)
            state = root / "state"
            fabric.write(state)
            write_engine_faults(state, scenario)
            specs = [
                _host_spec(described, name, environment_of(scenario, name, root / name))
                for name in described.hosts
            ]
            hosts = TwinHosts.start(specs, root=root, state=state)
            undo.callback(hosts.stop)
            for name, host in hosts.hosts.items():
                _install_engine(host, os.environ.get(PYTHON_VARIABLE, sys.executable))
                break_host(scenario, name, hosts, undo)
            cluster = _reachable(described, hosts.hosts)
            return cls(cluster, hosts, state, undo.pop_all())

    def stop(self) -> None:
        """End the hosts' servers and remove everything. What still runs on them is not ours."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _moved(cluster: Cluster, network: str | None) -> Cluster:
    """The cluster at the same last numbers of another loopback network (`127.9.1`).

    Instances and the proxy have fixed ports: two twins at once need addresses of their own.
    """
    if network is None:
        return cluster
    hosts = {
        name: host.model_copy(update={"address": f"{network}.{host.address.rpartition('.')[2]}"})
        for name, host in cluster.hosts.items()
    }
    return cluster.model_copy(update={"hosts": hosts})


def _remove_dead_twins() -> None:
    """Files of twins whose process was killed: the servers ended by themselves, files cannot."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _host_spec(cluster: Cluster, name: str, broken: Mapping[str, str]) -> TwinHostSpec:
    host = cluster.hosts[name]
    cache = cache_directory()
    env = {
        "XDG_CACHE_HOME": str(cache),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),  # inspecting model classes takes 8 s once
        **{name: value for name in _PASSED_ON if (value := os.environ.get(name))},
        **broken,
    }
    ssh = cluster.ssh_of(name)
    port = ssh.port if host.ssh is not None else 0
    return TwinHostSpec(
        name=name,
        address=host.address,
        port=port,
        devices=devices_of(cluster, name),
        env=env,
    )


def _install_engine(host: TwinHost, interpreter: str) -> None:
    """`vllm` on the host's PATH: the guide's command line, adapted to a CPU (engine.py)."""
    if shutil.which(interpreter) is None:
        raise TwinError(f"{PYTHON_VARIABLE} names {interpreter}, which is no program")
    program = host.directory / "bin" / "vllm"
    program.write_text(
        "#!/bin/sh\n"
        f'PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{PROJECT}" '
        f"exec '{interpreter}' -m twin.engine \"$@\"\n"
    )
    program.chmod(0o755)
    python = host.directory / "bin" / "python3"
    # The packages of a host include what only the twin provides, llm_datadist above all.
    python.write_text(
        "#!/bin/sh\n"
        f'PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{PROJECT / "twin" / "site"}" '
        f"exec '{interpreter}' \"$@\"\n"
    )
    python.chmod(0o755)


def _reachable(cluster: Cluster, hosts: Mapping[str, TwinHost]) -> Cluster:
    """The cluster with what is known only now: SSH ports, the key, a directory per host.

    The hosts share this machine's files, so each needs a work directory of its own.
    """
    reachable: dict[str, Host] = {}
    for name, host in cluster.hosts.items():
        twin = hosts[name]
        ssh = Ssh(
            user=twin.user,
            port=twin.port,
            key=twin.key,
            known_hosts=twin.known_hosts,
        )
        reachable[name] = host.model_copy(
            update={"ssh": ssh, "workdir": twin.directory / "pd-validate"}
        )
    return cluster.model_copy(update={"hosts": reachable})
