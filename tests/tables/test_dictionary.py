"""The written dictionaries are those of the code."""

import pytest

from riskml.contracts import CONTRACTS
from riskml.facts import load_facts
from riskml.features.catalog import CATALOG
from riskml.features.inputs import INPUTS
from riskml.tables.dictionary import features_markdown, tables_markdown, write


@pytest.mark.parametrize(
    ("name", "make"), [("FEATURES.md", features_markdown), ("TABLES.md", tables_markdown)]
)
def test_the_dictionary_in_data_is_up_to_date(name, make, repository):
    written = (repository / "data" / name).read_text(encoding="utf-8")
    assert written == make(), "run: python -m riskml.tables.dictionary"


def test_every_feature_input_table_and_column_is_listed():
    features, tables = features_markdown(), tables_markdown()
    assert all(f"| {feature.name} |" in features for feature in CATALOG)
    assert all(f"| {name} |" in features for name in INPUTS)
    for table in CONTRACTS.values():
        section = tables.split(f"\n## {table.name}\n")[1].split("\n## ")[0]
        assert all(f"| {name} |" in section for name in table.column_names)


def test_every_feature_says_its_lookbacks_and_when_it_is_missing():
    lines = features_markdown().splitlines()
    for feature in CATALOG:
        line = next(line for line in lines if line.startswith(f"| {feature.name} |"))
        lookbacks = f"| {feature.lookback_bars('1h')} | {feature.lookback_bars('1m')} |"
        assert f"{lookbacks} {feature.nan_rule} |" in line.replace("\\|", "|")


def test_the_weights_of_every_entry_are_listed_with_their_reason():
    text = features_markdown()
    facts = load_facts("chain_weights")
    assert "| default | ethereum 0.30, tron 0.15" in text
    for section in ("venue", "market"):
        for name, entry in facts[section].items():
            assert f"| {section} {name} |" in text
            assert entry["reason"].replace("\n", " ") in text


def test_every_row_of_a_table_has_the_same_number_of_cells():
    for text in (features_markdown(), tables_markdown()):
        for block in text.split("\n\n"):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1


def test_writing_leaves_only_the_two_files(tmp_path):
    assert [path.name for path in write(tmp_path)] == ["TABLES.md", "FEATURES.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FEATURES.md", "TABLES.md"]
