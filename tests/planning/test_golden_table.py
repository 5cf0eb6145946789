import golden_table


def test_the_table_of_the_documentation_is_what_is_planned():
    page = golden_table.PAGE.read_text(encoding="utf-8")
    assert len(golden_table.KINDS) >= 14
    assert golden_table.page_with_table(page) == page, "read `git diff` after `python tests/planning/golden_table.py`"
