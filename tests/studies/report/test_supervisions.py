"""What each supervision teaches, as the report says it."""

from studies.report.document import Table
from studies.report.supervisions import name_gains, show_supervisions
from tests.studies.report.report_study import make_results


def test_what_rationales_teach_is_read_first_and_a_table() -> None:
    results = make_results()
    [fact] = name_gains(results["supervisions"], results["study"]["sizes"])
    assert fact.name == "What rationales teach" and fact.value == "+33.4 points"
    assert fact.note == "[+30.0, +36.0] over label, mean over 4 arms; labels over untuned +33.4 [+30.0, +36.0]"
    [table] = show_supervisions(results)
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[2][:4]] == ["rationale", "label", "+33.4", "[+30.0, +36.0]"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
