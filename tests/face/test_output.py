"""What is printed for people."""

from __future__ import annotations

import pytest

from edgewise.output import print_table


def test_a_name_with_a_line_break_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In the log of a continuous integration a line of its own may be a command."""
    print_table(("file", "check"), [("x\n::stop-commands::t", "a\r::b\u2028c\x1b[2J")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("x ::stop-commands::t")
    assert "\x1b" not in lines[1]
