"""`--quarantine`: a known fault does not make a run red, and nobody can forget it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from as_user import run_pytest
from foreign import Foreign
from jsonschema import Draft202012Validator

from pd_validate.catalogue import Layer
from pd_validate.checks.result import CheckResult, Report
from pd_validate.errors import SpecError
from pd_validate.findings import Cause, Finding, Severity, Verdict, Where, root_findings, verdict_of
from pd_validate.quarantine import Entry, Placed, Quarantine, WherePattern, load_quarantine
from pd_validate.recording import check_results, quarantine
from twin.scenario import DeviceFault, Scenario

SCHEMA = Path(__file__).parents[3] / "docs" / "findings.schema.json"
NETWORK = ("--cluster", "cluster.yaml", "-m", "network", "-p", "no:allure_pytest")
URL = "https://issues.example.org/17"
EXPIRY = dt.date(2026, 12, 31)
DOWN = Finding(id="link.down", where=Where(host="d1", device=6))
USAGE_ERROR = 4


def entry(id: str = "link.down", expires: dt.date = EXPIRY, **where: str) -> Entry:
    pattern = WherePattern.model_validate(where)
    return Entry(id=id, where=pattern, url=URL, expires=expires, reason="on order")


def on(day: dt.date, *entries: Entry) -> Quarantine:
    return Quarantine([Placed(each, f"q.yaml:{n}") for n, each in enumerate(entries)], today=day)


def text(id: str = "link.down", where: str = "{host: d1, device: 6}", **changes: str) -> str:
    keys = {"url": URL, "expires": "2099-12-31", "reason": "on order", **changes}
    lines = [f"  - id: {id}", f"    where: {where}", *(f"    {k}: {v}" for k, v in keys.items())]
    return "\n".join(["quarantine:", *lines]) + "\n"


# --- what matches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ({}, True),
        ({"host": "d1"}, True),
        ({"host": "d?", "device": "6"}, True),
        ({"host": "d1", "device": "*"}, True),
        ({"host": "d2"}, False),
        ({"device": "7"}, False),
        ({"instance": "*"}, False),  # stated here, unknown there
    ],
)
def test_where(where: dict[str, str], matches: bool) -> None:
    marked = on(EXPIRY, entry(**where)).mark(DOWN)
    assert marked.quarantined is matches
    assert (marked == DOWN) is not matches


def test_another_id_does_not_match() -> None:
    assert on(EXPIRY, entry("link.flapping")).mark(DOWN) == DOWN


def test_the_last_day_and_the_day_after() -> None:
    last = on(EXPIRY, entry()).mark(DOWN)
    assert last.quarantined
    assert str(last).endswith(f"quarantined until 2026-12-31: on order ({URL}).")
    after = on(EXPIRY + dt.timedelta(days=1), entry()).mark(DOWN)
    assert not after.quarantined
    assert str(after).endswith(f"quarantine expired on 2026-12-31: on order ({URL}).")


def test_an_entry_that_holds_goes_before_one_that_has_expired() -> None:
    old, new = entry(expires=dt.date(2026, 1, 1)), entry(host="d1")
    for both in ((old, new), (new, old)):
        assert on(EXPIRY, *both).mark(DOWN).quarantined


def test_what_is_quarantined_does_not_count() -> None:
    known = on(EXPIRY, entry()).mark(DOWN)
    health = Finding(id="health.unreachable", because=(Cause(id=DOWN.id, where=DOWN.where),))
    other = Finding(id="tls.mismatch")
    assert root_findings([known, health]) == []
    assert verdict_of([known]) is Verdict.PASS
    assert verdict_of([known, other]) is Verdict.FAIL
    unknown = Finding(id="tool.busy", severity=Severity.UNKNOWN)
    assert verdict_of(on(EXPIRY, entry("tool.busy")).mark_all([unknown])) is Verdict.PASS


def test_a_cell_of_the_matrix_is_known_only_if_all_of_it_is() -> None:
    other = Finding(id="optics.los", where=DOWN.where)
    results = tuple(
        CheckResult("link", DOWN.where, Verdict.FAIL, Layer.LINK, findings=findings)
        for findings in ((DOWN,), (DOWN, other))
    )
    report = on(EXPIRY, entry()).mark_report(Report((DOWN, other), results))
    assert [f.quarantined for f in report.findings] == [True, False]
    # A test asks by identity which findings of the report are its own.
    assert report.problems("link") == list(report.findings)
    assert [cell.quarantined for cell in check_results(report)] == [True, False]


def test_what_each_entry_matched() -> None:
    entries = on(dt.date(2027, 1, 1), entry(host="d1"), entry("ping.slow"))
    matched, idle = quarantine(entries, [DOWN, Finding(id="tls.mismatch")])
    assert (matched.matched, matched.expired, matched.where) == (1, True, "host d1")
    assert (idle.matched, idle.where, str(idle)) == (
        0,
        "anywhere",
        "ping.slow at anywhere (q.yaml:1)",
    )


# --- the file ------------------------------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(text())
    loaded = load_quarantine(tmp_path / "q.yaml", {})
    assert [each.place for each in loaded.entries] == [f"{tmp_path}/q.yaml:2"]
    assert loaded.mark(DOWN).quarantined


def test_the_example_can_be_used() -> None:
    example = Path(__file__).parents[3] / "examples" / "quarantine.yaml"
    assert load_quarantine(example, {}).mark(DOWN).quarantined


MISTAKES = {
    "misspelt id": (text(id="link.dwon"), 2, "did you mean `link.down`?"),
    "misspelt key": (text().replace("reason", "raeson"), 6, "did you mean `reason`?"),
    "no url": (text().replace(f"    url: {URL}\n", ""), 2, "needs `url:`"),
    "not an address": (text(url="ask-bob"), 4, "ask-bob"),
    "no date": (text(expires="soon"), 5, "soon"),
    "unknown place": (text(where="{hsot: d1}"), 3, "did you mean `host`?"),
    "no list": ("quarantine: yes\n", 1, "must be a list"),
    "no reason": (text(reason='""'), 6, "reason"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, mistake: str) -> None:
    wrong, line, word = MISTAKES[mistake]
    (tmp_path / "q.yaml").write_text(wrong)
    with pytest.raises(SpecError) as told:
        load_quarantine(tmp_path / "q.yaml", {})
    (message,) = str(told.value).splitlines()
    assert message.startswith(f"{tmp_path}/q.yaml:{line}:")
    assert word in message


def test_a_wrong_file_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(text(id="link.dwon"))
    done = run_pytest(["--cluster", "twin", "--quarantine", "q.yaml"], tmp_path)
    assert done.returncode == USAGE_ERROR
    assert "q.yaml:2:" in done.stderr
    assert not (tmp_path / "pd-report").exists()


# --- whole runs --------------------------------------------------------------------------------


def test_known_and_expired(foreign: Foreign) -> None:
    """The same dead link: quarantined it is green and told, expired it is red and told."""
    down = Scenario(faults=(DeviceFault(host="d1", device=6, link="down"),))
    idle = "  - {id: ping.slow, where: {}, url: 'https://x/2', expires: 2099-01-01, reason: r}\n"
    runs = {}
    with foreign.changed(down):
        for name, expires in (("known", "2099-12-31"), ("expired", "2020-01-31")):
            report = foreign.directory.parent / name
            file = foreign.directory.parent / f"{name}.yaml"
            file.write_text(text(expires=expires) + idle)
            arguments = [*NETWORK, "--report", str(report)]
            env = {"PD_QUARANTINE": str(file)}  # as good as the option
            done = run_pytest(arguments, foreign.directory, env)
            runs[name] = (done, report, json.loads((report / "findings.json").read_text()))

    done, report, told = runs["known"]
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert (told["verdict"], [f for f in told["findings"] if f["severity"] == "fail"]) == (
        "pass",
        [],
    )
    (known,) = told["quarantined"]
    assert (known["id"], known["quarantine"]["url"]) == ("link.down", URL)
    assert [e["matched"] for e in told["quarantine"]] == [1, 0]
    pages = [done.stdout, *((report / n).read_text() for n in ("summary.html", "summary.md"))]
    for page in pages:
        assert "QUARANTINED FAIL" in page
        assert URL in page
        assert "that matched nothing" in page
        assert "https://x/2" in page

    done, report, told = runs["expired"]
    assert done.returncode == 1, done.stdout
    (fault,) = [f for f in told["findings"] if f["severity"] == "fail"]
    assert (fault["id"], fault["quarantine"]["expired"]) == ("link.down", True)
    assert told["quarantined"] == []
    for name in ("summary.html", "summary.md"):
        page = (report / name).read_text()
        assert "quarantine expired on 2020-01-31" in page
        assert URL in page
    assert "quarantine expired on 2020-01-31" in done.stdout
