"""checks.html: what every finding means, beside the report of each run.

The same text as docs/checks.md, from the same catalogue; as a page of its own, so that a
report can link to it wherever the report is carried. A finding's section has its id as anchor.
"""

from __future__ import annotations

from collections.abc import Iterator

from pd_validate.catalogue import CATALOGUE, Kind, Layer
from pd_validate.report.markup import Markup, el, join, prose
from pd_validate.report.page import html_page

# How the name of such a link begins, in Allure.
ABOUT = "about "
# As seen from Allure's page, which lies one directory deeper (places.py).
_FROM_ALLURE = "../checks.html"
_TITLE = "Every finding"
_LEAD = (
    "What each finding means, what shows it, and what to do. Lowest layer first: "
    "a fault below explains symptoms above."
)


def link_from_allure(finding_id: str) -> str:
    """Address of a finding's section, relative to Allure's page."""
    return f"{_FROM_ALLURE}#{finding_id}"


def about(kind: Kind, *, fix: bool = True) -> Markup:
    """What shows a fault and, with `fix`, what to do about it, as terms with their text."""
    remedy = (el("dt", "what to do"), el("dd", prose(kind.fix))) if fix else ()
    return el("dl", el("dt", "shown by"), el("dd", prose(kind.evidence)), *remedy, cls="about")


def reference_html() -> str:
    """The page, complete; it loads nothing from anywhere."""
    return html_page(_TITLE, el("header", el("h1", _TITLE), el("p", _LEAD, cls="meta")), *_layers())


def _layers() -> Iterator[Markup]:
    for layer in Layer:
        kinds = [kind for kind in CATALOGUE.values() if kind.layer is layer]
        title = f"{layer.value}. {layer.label[0].upper()}{layer.label[1:]}"
        yield el("section", el("h2", title), *map(_entry, kinds))


def _entry(kind: Kind) -> Markup:
    name = el("h3", el("a", kind.id, href=f"#{kind.id}"))
    return el("article", join(name, el("p", prose(kind.meaning)), about(kind)), id=kind.id)
