"""Logs beside the report: each one's end to read, and all of everything in one archive."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping

from pd_validate.report.places import Places
from pd_validate.report.record import Attachment
from pd_validate.report.redact import Redactor

SHOWN = 1024 * 1024  # bytes of one log that lie beside the report
_DATA = ".jsonl"  # whoever reads these reads every line: no line of ours among them


def write_logs(texts: Mapping[str, str], places: Places, redactor: Redactor) -> list[Attachment]:
    """Write all texts, redacted, in place of an earlier run's; returns what is beside the report.

    Names may have directories (`d1/plog/…`). Without any text there is no archive. Raises OSError.
    """
    shutil.rmtree(places.logs, ignore_errors=True)
    places.logs_archive.unlink(missing_ok=True)
    places.logs.mkdir(parents=True)
    if not texts:
        return []
    attachments = []
    with tarfile.open(places.logs_archive, "w:gz") as archive:
        for name, text in texts.items():
            content = redactor.text(text).encode()
            entry = tarfile.TarInfo(f"logs/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            path = places.logs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_end(name, content))
            attachments.append(
                Attachment(name=name, path=f"logs/{name}", bytes=path.stat().st_size)
            )
    size = places.logs_archive.stat().st_size
    name = places.logs_archive.name
    return [*attachments, Attachment(name=f"{name} (all of it)", path=name, bytes=size)]


def _end(name: str, content: bytes) -> bytes:
    if len(content) <= SHOWN:
        return content
    _, _, rest = content[-SHOWN:].partition(b"\n")
    if name.endswith(_DATA):
        return rest
    return f"(the end of {len(content)} bytes; all of it is in logs.tar.gz)\n".encode() + rest
