"""Every text that is read or written is UTF-8, whatever the locale."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("bbnet", "workflow_scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+"}


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text, or talks to a process, in the encoding of the locale."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if keywords.keys() & {"text", "universal_newlines"}:
        return True
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if method else getattr(call.func, "id", "")
    mode = next((value.value for value in [*call.args, keywords.get("mode")] if isinstance(value, ast.Constant)), None)
    if name == "read_text" and call.args:
        return False  # the encoding, or the name of a file of an installed package, which is UTF-8
    if name in ("read_text", "write_text"):
        return method  # write_text of workflow_scripts/common.py is a function
    if name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile"):
        return mode in TEXT_MODES or (name == "open" and mode is None and not (method and call.args))
    return name == "FileHandler"


def test_no_text_is_opened_in_the_encoding_of_the_locale():
    assert len(SOURCES) > 100
    assert [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and without_encoding(call)
    ] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text('utf-8')", False),
        ("distribution.read_text('RECORD')", False),
        ("(folder / name).write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("write_text(path, text)", False),
        ("open(path)", True),
        ("path.open('w', newline='')", True),
        ("path.open()", True),
        ("path.open('wb')", False),
        ("Image.open(path)", False),
        ("subprocess.run(command, text=True)", True),
    ],
)
def test_the_search_knows_calls_that_open_a_text(code, found):
    assert without_encoding(ast.parse(code).body[0].value) == found
