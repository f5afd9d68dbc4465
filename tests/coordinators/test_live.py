"""The live view: bars in a terminal, few plain lines elsewhere."""

import io

from rich.console import Console

from coordinators.live import LiveView

EVENTS = [
    {"kind": "phase_started", "phase": "cognate"},
    {"kind": "task_started", "phase": "cognate", "task": "train a", "agent": "a"},
    *(
        {
            "kind": "progress",
            "phase": "cognate",
            "task": "train a",
            "agent": "a",
            "step": step,
            "steps": 50,
            "metrics": {"loss": 3.25, "tokens_per_second": 1000.0},
        }
        for step in range(1, 51)
    ),
    {"kind": "task_failed", "phase": "cognate", "task": "train a", "agent": "a", "error": "disk [full]"},
]


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with LiveView(console=console) as view:
        for event in EVENTS:
            view.on_event(event)
    return out.getvalue()


def test_plain_lines_are_few_and_name_errors() -> None:
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 4
    assert lines[2] == "cognate train a 1/50  loss 3.25  tokens_per_second 1000"
    assert lines[3] == "cognate train a failed: disk [full]"


def test_a_terminal_gets_bars() -> None:
    text = shown(terminal=True)
    assert "50/50" in text
    assert "loss 3.25" in text
