"""The written dictionaries are those of the code."""

import pytest

from riskml.contracts import CONTRACTS
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


def test_every_row_of_a_table_has_the_same_number_of_cells():
    for text in (features_markdown(), tables_markdown()):
        for block in text.split("\n\n"):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1


def test_writing_leaves_only_the_two_files(tmp_path):
    assert [path.name for path in write(tmp_path)] == ["TABLES.md", "FEATURES.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FEATURES.md", "TABLES.md"]
