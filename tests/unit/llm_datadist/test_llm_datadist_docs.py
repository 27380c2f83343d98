"""docs/llm-datadist.md: each rule with its tests, and no test of the contract without its rule."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "llm-datadist.md"
BEYOND = {"fabric", "faults", "docs"}  # what the twin adds to CANN's rules, and this file


def test_every_test_of_the_contract_is_listed_and_every_listed_one_exists() -> None:
    files = Path(__file__).parent.glob("test_llm_datadist_*.py")
    contract = [path for path in files if path.stem.rpartition("_")[2] not in BEYOND]
    text = "".join(path.read_text("utf-8") for path in contract)
    defined = re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)
    assert len(contract) == 7
    assert set(re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8"))) == set(defined)


def test_every_rule_has_a_test() -> None:
    rules = re.findall(r"^\| (?!rule )(?!-)(.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rules) > 50
    assert [rule for rule, tests in rules if not re.fullmatch(r"`test_.*`", tests)] == []
