"""docs/scenarios.md: every example loads, every word is in one, the table is the current one."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from twin import scenario as vocabulary
from twin.cluster import PROJECT, cluster_file, described_cluster
from twin.fabric import Product, healthy_cluster
from twin.names import check_names
from twin.scenario import Fault, load_scenario
from twin.scenarios import SCENARIOS, listing, scenario_files

TEXT = (PROJECT / "docs" / "scenarios.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_loads_and_can_be_applied(tmp_path: Path, example: str) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(textwrap.dedent(example))
    scenario = load_scenario(file)
    assert cluster_file(scenario.cluster).is_file()
    product = Product.A3 if "a3" in scenario.cluster else Product.A2
    fabric = healthy_cluster({"p1": "127.0.0.1", "d1": "127.0.0.2", "d2": "127.0.0.3"}, product)
    instances = described_cluster(cluster_file(scenario.cluster)).instances
    check_names(scenario, fabric, instances, layers=4)
    scenario.break_fabric(fabric)


def words() -> set[str]:
    """Every key that a fault may have, as it is written."""
    kinds: list[type[Fault]] = Fault.__subclasses__()
    models = [*kinds, vocabulary.KvEffect, vocabulary.HttpAnswer]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def test_every_word_stands_in_an_example() -> None:
    examples = "\n".join(EXAMPLES)
    missing = {word for word in words() if not re.search(rf"\b{word}:", examples)}
    assert missing == set()


def test_the_table_is_the_current_one() -> None:
    table = TEXT.partition("--list -->\n")[2].partition("<!-- end -->")[0].strip().splitlines()
    assert table == listing(scenario_files([SCENARIOS]))
