"""The story of a test in Allure: steps, attachments, labels. Works without Allure, too.

Every step goes to the log as well, so that a run without Allure, or one that hangs, still
tells what it was doing. Files beside the results (environment, categories, the HTML) are
made by `allure_files.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from typing import Any

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.findings import Finding
from pd_validate.report.record import Span
from pd_validate.report.redact import Redactor
from pd_validate.report.reference import ABOUT, link_from_allure
from pd_validate.report.words import capped

try:
    import allure

    from pd_validate.report.allure_fixtures import leave_out_silent_fixtures
    from pd_validate.report.allure_steps import add_steps
except ImportError:  # the results are then simply not written
    allure = None

_log = logging.getLogger("pd_validate.step")

# All attachments are inlined into the one HTML file, so one log must not make it unusable.
ATTACHMENT_LIMIT = 200_000  # characters

# allure-pytest sets `host` (of the controller) and others by itself; ours have a prefix.
HOST_LABEL = "pd_host"
INSTANCE_LABEL = "pd_instance"
DEVICE_LABEL = "pd_device"
LAYER_LABEL = "pd_layer"
FINDING_LABEL = "pd_finding"


class Kind(StrEnum):
    """What an attachment is; picks how Allure shows it."""

    TEXT = "TEXT"
    JSON = "JSON"
    HTML = "HTML"
    SVG = "SVG"


def begin_results() -> None:
    """Once Allure's plugin is at work, in each process that runs tests."""
    if allure:
        leave_out_silent_fixtures()


class Story:
    """Steps, attachments and labels of the running test; all text is redacted and capped."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A named part of a test, with its duration; nested steps nest in the report."""
        title = self._redactor.text(title)
        began = time.monotonic()
        _log.info("%s", title)
        with allure.step(title) if allure else nullcontext():
            try:
                yield
            except BaseException as error:
                took = time.monotonic() - began
                _log.info("%s: %s after %.1f s", title, type(error).__name__, took)
                raise
        _log.info("%s: done in %.1f s", title, time.monotonic() - began)

    def tell(self, spans: Sequence[Span]) -> None:
        """What has been done for the running test, with the times at which it was done."""
        if allure and spans:
            text = self._redactor.text
            add_steps([span.model_copy(update={"note": text(span.note)}) for span in spans])

    def attach(self, name: str, content: str, kind: Kind = Kind.TEXT) -> None:
        """Attach text to the running test or step."""
        if allure:
            allure.attach(self._safe(content, kind), name, _attachment_type(kind))

    def attach_to_run(self, name: str, content: str, kind: Kind = Kind.TEXT) -> None:
        """Attach text to the run as a whole; call it in the controller process."""
        if allure:
            allure.global_attach(self._safe(content, kind), name, _attachment_type(kind))

    def error_of_run(self, message: str) -> None:
        """An error that belongs to no test: a failed bring-up, a leak after all tests."""
        if allure:
            allure.global_error(self._redactor.text(message))

    def place(
        self,
        layer: Layer,
        *,
        host: str | None = None,
        device: int | None = None,
        instance: str | None = None,
    ) -> None:
        """Say what the running test is about: its suite, its labels, its severity."""
        if not allure:
            return
        allure.dynamic.parent_suite(layer.label)
        if host or instance:
            allure.dynamic.sub_suite(instance or host)
        allure.dynamic.severity(_SEVERITIES[layer])
        for label, value in (
            (LAYER_LABEL, layer.label),
            (HOST_LABEL, host),
            (DEVICE_LABEL, None if device is None else f"{host} npu{device}"),
            (INSTANCE_LABEL, instance),
        ):
            if value is not None:
                allure.dynamic.label(label, value)

    def finding(self, finding: Finding) -> None:
        """Label the running test with a finding and attach what there is to know about it."""
        if not allure:
            return
        where = finding.where
        labels: tuple[tuple[str, str | None], ...] = (
            (FINDING_LABEL, finding.id),
            (HOST_LABEL, where.host),
            (INSTANCE_LABEL, where.instance),
            (DEVICE_LABEL, None if where.device is None else f"{where.host} npu{where.device}"),
        )
        for label, value in labels:
            if value is not None:
                allure.dynamic.label(label, value)
        allure.dynamic.link(link_from_allure(finding.id), name=f"{ABOUT}{finding.id}")
        if finding.known is not None:
            allure.dynamic.link(finding.known.url, link_type="issue", name=str(finding.known))
        parts = [CATALOGUE[finding.id].meaning, str(finding), *finding.evidence]
        self.attach(f"{finding.id} at {where}", "\n\n".join(parts))

    def _safe(self, content: str, kind: Kind) -> str:
        # Cutting the middle out of HTML or SVG would break it, and we make those ourselves.
        if kind in (Kind.HTML, Kind.SVG):
            return self._redactor.text(content)
        # Capped twice: redacting a whole log of a gigabyte takes minutes, and the first cut may
        # go through a secret; what is near that cut does not survive the second.
        roughly = capped(content, 4 * ATTACHMENT_LIMIT)
        return capped(self._redactor.text(roughly), ATTACHMENT_LIMIT)


# How much a red test of this layer matters. KV data stands highest: it is wrong in silence.
_SEVERITIES = {
    Layer.LINK: "critical",
    Layer.NPU_NETWORK: "critical",
    Layer.HOST: "normal",
    Layer.PLAN: "normal",
    Layer.ENGINE: "critical",
    Layer.KV_LINK: "critical",
    Layer.KV_DATA: "blocker",
    Layer.PROXY: "critical",
    Layer.SERVICE: "critical",
    Layer.LEFTOVER: "minor",
}


def _attachment_type(kind: Kind) -> Any:
    return getattr(allure.attachment_type, kind.value)
