"""docs/checks.md is what the code says, with every part of every finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.catalogue import CATALOGUE, Kind
from pd_validate.checks.docs import page

PAGE = Path(__file__).parents[3] / "docs" / "checks.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run: python -m pd_validate.checks.docs > docs/checks.md"


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.id)
def test_every_finding_says_what_shows_it_and_what_to_do(kind: Kind) -> None:
    for text in (kind.meaning, kind.fix, kind.evidence):
        assert len(text) > 10
        assert text.endswith(".")
