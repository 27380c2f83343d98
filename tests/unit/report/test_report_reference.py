"""checks.html: every finding has its section, with the text of docs/checks.md."""

import pytest
from test_report_html import check

from pd_validate.catalogue import CATALOGUE
from pd_validate.report.reference import link_from_allure, reference_html


def test_well_formed_and_self_contained():
    found = check(reference_html())
    assert (found.errors, found.open_tags, found.loads) == ([], [], [])
    assert found.ids == [kind.id for kind in sorted(CATALOGUE.values(), key=lambda k: k.layer)]
    assert {link.removeprefix("#") for link in found.links} == set(found.ids)


@pytest.mark.parametrize("id_", ["link.down", "ranktable.server-id", "kv.corrupt"])
def test_a_link_lands_at_its_finding(browser, tmp_path, id_):
    page_file = tmp_path / "checks.html"
    page_file.write_text(reference_html(), encoding="utf-8")
    page = browser.open(page_file)
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    page.evaluate(f"location.hash = '{id_}'")
    top, text = page.evaluate(
        "(() => { const e = document.querySelector('article:target');"
        " return [e.getBoundingClientRect().top, e.innerText] })()"
    )
    assert 0 <= top < 800
    kind = CATALOGUE[id_]
    for sentence in (id_, kind.meaning, kind.evidence, kind.fix):
        assert sentence.replace("`", "") in text
    assert page.console == []


def test_the_link_leads_out_of_allures_directory():
    assert link_from_allure("link.down") == "../checks.html#link.down"
