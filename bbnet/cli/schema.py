"""Writes what a study may contain: its JSON schema, for editors, and a page with all keys, for readers.

`python -m bbnet.cli.schema` writes `studies/schema.json` and `docs/studies.md`; a test compares both.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bbnet.sparsity.parameters import DropAndGrowParameters
from bbnet.study.config import Knobs, Sparsity, Study
from bbnet.tasks.settings import FixedBatchTraining

SCHEMA, PAGE = Path("studies", "schema.json"), Path("docs", "studies.md")
SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Keys of a study", Study),
    ("Keys of `sparsity`, which all methods share", Sparsity),
    ("Parameters of methods under `methods`, as far as several have them", DropAndGrowParameters),
    ("Keys of `training` of a task", FixedBatchTraining),
    ("Options of config.yaml", Knobs),
)
INTRODUCTION = """# All keys of a study

A study is a file `studies/{name}.yaml`. It is complete: nothing is merged into it, and unknown keys are errors.
Whole numbers are decimal, also with zeros before them: 010 is ten.
The keys of each task, and the parameters of each algorithm, are described with them: [speech.md](speech.md),
[faces.md](faces.md), [algorithms.md](algorithms.md), and `studies/schema.json`, with which editors complete and check
a study.
"""


def study_schema() -> str:
    """Returns the schema as text."""
    return json.dumps(Study.model_json_schema(), indent=1) + "\n"


def study_page() -> str:
    """Returns the page in Markdown."""
    return "\n".join([INTRODUCTION, *(line for section in SECTIONS for line in _section(*section))])


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield from (f"## {title}", "", "| key | default | meaning |", "|---|---|---|")
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_default(field)} | {field.description or ''} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "absent" if value in (None, "") else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    SCHEMA.write_text(study_schema(), encoding="utf-8")
    PAGE.write_text(study_page(), encoding="utf-8")
