"""Put our own code on the hosts: connector/ and proxy/, by content.

The two packages import nothing of pd_validate, so copying them is all a host needs.
Code lies under its digest beside the run directories, and a run directory's `code`
points there: a second run with the same code copies nothing.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pd_validate.errors import LabError
from pd_validate.hosts.api import Commands

_PACKAGES = ("connector", "proxy")
_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Bundle:
    """The packages as one gzipped tar, and the digest of their content (hex, 16 digits)."""

    digest: str
    data: bytes


def pack(root: Path = _ROOT) -> Bundle:
    """Read the packages below `root`. Equal files give equal digests."""
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for package in _PACKAGES:
            for path in sorted((root / package).rglob("*.py")):
                content = path.read_bytes()
                name = path.relative_to(root).as_posix()
                digest.update(name.encode() + b"\0" + content + b"\0")
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o644
                archive.addfile(entry, io.BytesIO(content))
    return Bundle(digest.hexdigest()[:16], buffer.getvalue())


def stage(host: Commands, bundle: Bundle, *, workdir: str, run_dir: str, timeout: float) -> bool:
    """Make `<run_dir>/code` hold the bundle on `host`. Returns True if it had to be copied.

    Raises LabError with the host's own words if the archive cannot be unpacked there.
    """
    code = f"{workdir}/code/{bundle.digest}"
    quoted = shlex.quote(code)
    link = f"mkdir -p {shlex.quote(run_dir)} && ln -sfn {quoted} {shlex.quote(run_dir + '/code')}"
    if host.run(f"test -e {quoted}/.complete && {link}", timeout=timeout).exit_code == 0:
        return False
    archive = f"{workdir}/code/{bundle.digest}.tar.gz"
    host.put(bundle.data, archive)
    unpacked = host.run(
        f"mkdir -p {quoted} && tar -xzf {shlex.quote(archive)} -C {quoted}"
        f" && touch {quoted}/.complete && rm -f {shlex.quote(archive)} && {link}",
        timeout=timeout,
    )
    if unpacked.exit_code != 0:
        raise LabError(
            f"{host.name}: cannot unpack our code into {code}: {unpacked.stderr.strip()}. "
            "Check that `workdir` of the cluster file is writable there and not full"
        )
    return True
