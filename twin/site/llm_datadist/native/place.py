"""Which instance, host and device this process is, and where the other processes are.

From the environment of the simulated host:

TWIN_HOST                   name of the host; default ``localhost``
TWIN_HOST_ADDRESS           its own address, where we listen; default 127.0.0.1
PD_INSTANCE                 name of the vLLM instance; default the host's name
ASCEND_RT_VISIBLE_DEVICES   physical ids of the devices the process sees; its n-th is logical n
TWIN_STATE                  the twin's state directory; ours is ``datadist`` in it

Every initialised process has a file there that says where it listens, as the NPUs' addresses do
on real hardware. A file left by a process that died does no harm: nobody answers there, and a
successor with the same cluster id on the same device replaces it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A process among the twin's devices."""

    cluster_id: int
    host: str
    address: str  # of the host
    device: int  # physical id
    rank: int  # logical device id, which is the TP rank within the instance
    instance: str

    @classmethod
    def of_process(cls, cluster_id: int, logical: int, env: Mapping[str, str]) -> Place:
        """This process on its logical device; ValueError if that is not among the visible."""
        host = env.get("TWIN_HOST", "localhost")
        return cls(
            cluster_id=cluster_id,
            host=host,
            address=env.get("TWIN_HOST_ADDRESS", "127.0.0.1"),
            device=physical_device(logical, env.get("ASCEND_RT_VISIBLE_DEVICES", "")),
            rank=logical,
            instance=env.get("PD_INSTANCE", host),
        )

    def __str__(self) -> str:
        return f"{self.instance} rank {self.rank} ({self.host} device {self.device})"


def physical_device(logical: int, visible: str) -> int:
    """Physical id of a logical device, given ASCEND_RT_VISIBLE_DEVICES ("" sees all)."""
    if not visible.strip():
        return logical
    devices = [int(one) for one in visible.split(",")]
    if logical >= len(devices):
        raise ValueError(
            f"device {logical} does not exist: ASCEND_RT_VISIBLE_DEVICES={visible} shows "
            f"{len(devices)} device(s)"
        )
    return devices[logical]


@dataclass(frozen=True)
class Endpoint:
    """A process and where it serves its memory."""

    place: Place
    port: int

    def to_json(self) -> dict[str, object]:
        return {"place": asdict(self.place), "port": self.port}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Endpoint:
        """Inverse of `to_json`; KeyError or TypeError if it is none."""
        place, port = value["place"], value["port"]
        if not isinstance(place, dict) or not isinstance(port, int):
            raise TypeError(f"not an endpoint: {value}")
        return cls(Place(**place), port)


class Registry:
    """The files that say where processes listen."""

    def __init__(self, state: str | None) -> None:
        if state is not None:
            self._directory = Path(state) / "datadist"
        else:
            self._directory = Path(tempfile.gettempdir()) / f"llm_datadist-{os.getuid()}"

    def _file(self, place: Place) -> Path:
        return self._directory / f"{place.cluster_id}@{place.host}.{place.device}.json"

    def publish(self, endpoint: Endpoint) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._file(endpoint.place)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(endpoint.to_json()), encoding="utf-8")
        beside.replace(file)

    def withdraw(self, endpoint: Endpoint) -> None:
        """Remove our own file; a successor's stays."""
        file = self._file(endpoint.place)
        if self._read(file) == endpoint:
            file.unlink(missing_ok=True)

    def find(self, cluster_id: int, device: int) -> list[Endpoint]:
        """Processes with that cluster id on a device with that physical id, on any host."""
        files = self._directory.glob(f"{cluster_id}@*.{device}.json")
        return [one for one in map(self._read, files) if one is not None]

    @staticmethod
    def _read(file: Path) -> Endpoint | None:
        try:
            return Endpoint.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # gone meanwhile, or no file of ours
