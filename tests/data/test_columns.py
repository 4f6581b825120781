from pathlib import Path

import pyarrow as pa
import pytest

from assay.data.column_facts import ColumnFacts, read_numbers, trim
from assay.data.columns import Feature, Plan, plan_columns
from assay.data.sources import SourceOptions
from assay.errors import SourceError

NOTHING = SourceOptions()


def facts_of(cells: list[str | None], name: str = "x", size: int = 7) -> ColumnFacts:
    facts = ColumnFacts(name)
    for start in range(0, len(cells), size):
        part = cells[start : start + size]
        facts.update(pa.array(part, pa.string()), list(range(start + 2, start + 2 + len(part))))
    return facts


def plan(columns: dict[str, list[str | None]], options: SourceOptions = NOTHING) -> Plan:
    return plan_columns(
        Path("t.csv"), {name: facts_of(cells, name) for name, cells in columns.items()}, (), options, False
    )


def cycle(*values: str, count: int = 40) -> list[str | None]:
    return [values[number % len(values)] for number in range(count)]


NUMBERS = [f"{number * 7 % 23}.5" for number in range(40)]
LONG = [f"the quick brown fox jumps over the lazy dog number {number}" for number in range(40)]


def test_numbers_are_read_and_the_rest_is_told_apart() -> None:
    found = read_numbers(trim(pa.array([" 1.5", "-2e3", "", None, "NA", "x", "inf", "1e39", ".5", "1,5"])))
    assert found.is_missing.tolist() == [False, False, True, True, True, False, False, False, False, False]
    assert found.is_odd.nonzero()[0].tolist() == [5, 9]
    assert found.is_infinite.nonzero()[0].tolist() == [6, 7]
    assert found.values[[0, 1, 8]].tolist() == [1.5, -2000.0, 0.5]
    assert read_numbers(trim(pa.array(["1,5", "2"])), decimal_comma=True).values.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_facts_do_not_depend_on_how_the_rows_are_cut(size: int) -> None:
    cells = [*(str(number) for number in range(30)), "", "x", "2020-01-02", "1,5", "inf", "-Infinity", "-nan", "+1."]
    assert facts_of(cells, size=size) == facts_of(cells, size=7)


def test_a_column_counts_as_consecutive_only_if_each_cell_is() -> None:
    assert facts_of([str(number) for number in range(5, 30)]).is_consecutive
    assert not facts_of([*(str(number) for number in range(20)), "25"]).is_consecutive
    assert not facts_of(["1", "", "3"]).is_consecutive


def test_values_are_counted_up_to_a_thousand() -> None:
    few, many = facts_of([f"v{n % 1000}" for n in range(1500)]), facts_of([f"v{n % 1002}" for n in range(1500)])
    assert few.values is not None
    assert (few.values["v0"], few.values["v999"]) == (2, 1)
    assert many.values is None


@pytest.mark.parametrize(
    ("odd", "rows", "is_numeric"), [(1, 30, True), (3, 30, True), (4, 30, False), (10, 2000, True), (30, 2000, False)]
)
def test_a_few_bad_cells_leave_a_column_one_of_numbers(odd: int, rows: int, is_numeric: bool) -> None:
    assert facts_of([*(f"{n}.5" for n in range(rows - odd)), *["bad"] * odd]).is_numeric == is_numeric


def test_roles_are_found_by_name_and_said() -> None:
    found = plan(
        {
            "Text": LONG,
            "Class": cycle("a", "b"),
            "split": cycle("train", "dev", "TEST"),
            "speaker_id": cycle("p", "q", "r"),
            "n": NUMBERS,
        }
    )
    assert (found.kind, found.label, found.text, found.split, found.group) == (
        "text",
        "Class",
        "Text",
        "split",
        "speaker_id",
    )
    assert found.notes[0] == (
        "Took column 'Class' as label, column 'Text' as text, column 'split' as split, column 'speaker_id' as group."
    )


def test_the_only_column_of_few_values_is_the_label() -> None:
    found = plan({"x": NUMBERS, "kind": cycle("b", "a")})
    assert (found.label, found.class_names, found.class_of) == ("kind", ("a", "b"), {"a": 0, "b": 1})


@pytest.mark.parametrize(
    ("values", "names"),
    [(("10", "9", "-1"), ("-1", "9", "10")), (("1.0", "0.0"), ("0", "1")), (("b", "10", "a"), ("10", "a", "b"))],
)
def test_classes_are_sorted_by_number_or_by_name(values: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert plan({"x": NUMBERS, "label": cycle(*values)}).class_names == names


def test_options_win_over_names() -> None:
    columns = {"label": cycle("a", "b"), "text": LONG, "x": NUMBERS, "set": cycle("x", "y", "z")}
    found = plan(columns, SourceOptions(label_column="set", drop_columns=("text",)))
    assert (found.kind, found.label, found.class_names) == ("table", "set", ("x", "y", "z"))
    assert found.columns == ("label=a", "label=b", "x")
    assert plan(columns, SourceOptions(text_column="x")).text == "x"


def test_the_longest_free_text_is_the_text() -> None:
    columns = {
        "title": [f"a long enough title that has its own number {n}" for n in range(40)],
        "about": LONG,
        "y": cycle("a", "b"),
    }
    assert plan(columns).text == "about"
    assert plan(columns | {"title": [f"{cell} and more and more" for cell in columns["title"]]}).text == "title"


def test_short_texts_beside_numbers_are_no_texts() -> None:
    columns = {"name": [f"name {n}" for n in range(40)], "label": cycle("a", "b")}
    assert plan(columns).text == "name"
    assert plan(columns | {"x": NUMBERS}).text is None


def test_words_of_few_levels_become_a_feature_each() -> None:
    found = plan({"colour": cycle("red", "blue", "NA"), "x": NUMBERS, "label": cycle("a", "b")})
    assert found.features == (Feature("colour", ("colour=blue", "colour=red"), ("blue", "red")), Feature("x", ("x",)))
    levels = cycle(*(f"c{n}" for n in range(21)), count=42)
    numbers, labels = cycle("1.5", "2.5", "3", count=42), cycle("a", "b", count=42)
    many = plan({"colour": levels, "x": numbers, "label": labels})
    assert many.columns == ("x",)


def test_a_kept_column_stays_in() -> None:
    columns = {"id": [str(number) for number in range(40)], "label": cycle("a", "b"), "x": NUMBERS}
    assert plan(columns).columns == ("x",)
    assert plan(columns, SourceOptions(keep_columns=("id",))).columns == ("id", "x")


def test_a_column_named_like_a_split_need_not_be_one() -> None:
    found = plan({"set": cycle("left", "right"), "x": NUMBERS, "label": cycle("a", "b", "c")})
    assert (found.split, found.columns) == (None, ("set=left", "set=right", "x"))


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(SourceError, match="two features would be named 'c=a'"):
        plan({"c": cycle("a", "b"), "c=a": NUMBERS, "label": cycle("a", "b")})
