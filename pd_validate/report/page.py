"""A whole HTML page of ours: one style, no script, and it loads nothing from anywhere."""

from __future__ import annotations

from pd_validate.report.markup import Child, Markup, el
from pd_validate.report.style import CSS, POLICY


def html_page(title: str, *main: Child) -> str:
    """The page with `main` as its content; complete, from doctype to the last line's end."""
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", http_equiv="Content-Security-Policy", content=POLICY),
            el("title", title),
            el("style", Markup(CSS)),
        ),
        el("body", el("main", *main)),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"
