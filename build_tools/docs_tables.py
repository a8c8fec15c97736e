"""Tables of docs/cuda-kernels.md that scripts write."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cuda-kernels.md"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_between_markers(tables: dict[str, str], page: Path = PAGE) -> None:
    """Each between <!-- name --> and <!-- end of name -->, which stay."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{page} has not one {begin.strip()} and one {end.strip()}.")
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    page.write_text(text, encoding="utf-8")
