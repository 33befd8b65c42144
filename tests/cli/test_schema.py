"""The schema and the page of all keys are those of the code: `make schema` writes both."""

from pathlib import Path

import pytest

from bbnet.cli.schema import PAGE, SCHEMA, study_page, study_schema

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("file", "text"), [(SCHEMA, study_schema), (PAGE, study_page)])
def test_what_is_shipped_is_what_the_code_says(file, text):
    assert (ROOT / file).read_text(encoding="utf-8") == text(), "run make schema"
