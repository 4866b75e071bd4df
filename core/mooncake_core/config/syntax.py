"""What is wrong with a text that is no YAML, in words for whoever wrote it."""

from __future__ import annotations

import re
from typing import Final

import yaml

_TOKENS: Final = {
    "<stream end>": "the end of the file",
    "<document end>": "`...`",
    "<document start>": "`---`",
    "<scalar>": "a text",
    "<block sequence start>": "a list",
    "<block mapping start>": "a mapping",
    "<block end>": "the end of an indented part",
    "<anchor>": "an anchor",
    "<alias>": "an alias",
    "?": "a key",
    "-": "a list item",
    "\\x00": "the end of the file",
    "\\n": "the end of the line",
    "\\t": "a tab",
}
_PARTS: Final = (("sequence", "list"), ("collection", "list"), ("mapping", "mapping"), ("quoted scalar", "quoted text"))


def explain(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line and column, from 1, and what is wrong there; 0 and 0 where the parser does not say."""
    error = _plainly(error, text)
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        message = f"expected text, got the control character {error.character:#04x}; remove it"
        return before.count("\n") + 1, error.position - before.rfind("\n"), message
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return 0, 0, str(error)
    mark = error.problem_mark
    return mark.line + 1, mark.column + 1, _words(error, mark, text.splitlines())


def _plainly(error: yaml.YAMLError, text: str) -> yaml.YAMLError:
    """The same from PyYAML's own parser, which says more than libyaml: the character it stopped at, for one."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as plain:
        return plain
    return error


def _words(error: yaml.MarkedYAMLError, mark: yaml.Mark, lines: list[str]) -> str:
    problem, context = error.problem or "", error.context or ""
    where = _around(context, error.context_mark, mark)
    if problem.startswith("mapping values are not allowed"):
        return "got a colon where no key can stand; check the indentation, and put a text with a colon in quotes"
    if match := re.fullmatch(r"found character '(.+)' that cannot start any token", problem):
        if match[1] == "\\t":
            return "got a tab as indentation; use spaces"
        return f"got `{match[1]}`, with which no value begins; put the value in quotes"
    if problem == "found unexpected end of stream":
        return f"got the end of the file{where}; close it with the same quote"
    if problem == "but found another document":
        return "expected one document, got a second one; remove this `---` and what follows, or join the two"
    if problem == "second occurrence":
        return context.replace("found", "got a").replace(
            "; first occurrence", f", which line {_line(error)} has already"
        )
    if match := re.fullmatch(r"expected (.+?),? but (?:found|got) (.+)", problem):
        return f"expected {_expected(match[1], context)}, got {_token(match[2])}{where}{_hint(mark, lines)}"
    return re.sub("^found ", "got ", problem) + where


def _expected(token: str, context: str) -> str:
    if token == "<block end>":  # what stands here belongs to nothing
        return "another list item" if "collection" in context else "another key, indented like those before it"
    return {"the node content": "a value", "chomping or indentation indicators": "the end of the line"}.get(
        token, token
    )


def _token(text: str) -> str:
    bare = text.strip("'\"") or text
    return _TOKENS.get(bare, f"`{bare}`")


def _around(context: str, begin: yaml.Mark | None, mark: yaml.Mark) -> str:
    """What the parser was in the middle of."""
    part = next((name for word, name in _PARTS if word in context), "")
    if not part or begin is None or (begin.line, begin.column) == (mark.line, mark.column):
        return ""
    return f", within the {part} that begins at line {begin.line + 1}, column {begin.column + 1}"


def _hint(mark: yaml.Mark, lines: list[str]) -> str:
    line = lines[mark.line] if mark.line < len(lines) else ""
    return "; within {} and [] put ${...} in quotes" if line[: mark.column].endswith("$") else ""


def _line(error: yaml.MarkedYAMLError) -> int:
    return error.context_mark.line + 1 if error.context_mark else 0
