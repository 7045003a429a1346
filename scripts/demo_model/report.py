"""Counting and printing of right answers, the same for every way of asking.

Owns the report format, whose last line reads "232 of 240 right (38 of 42 held out)". It never asks a
model; evaluation.py and check.py do.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from demo_model.prompts import Prompt


class Summary(NamedTuple):
    right: int
    total: int
    held_out_right: int
    held_out_total: int

    def __str__(self) -> str:
        return f"{self.right} of {self.total} right ({self.held_out_right} of {self.held_out_total} held out)"


def summary(prompts: list[Prompt], answers: list[str]) -> Summary:
    marks = [
        (prompt.is_right(answer), prompt.held_out) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    held_out = [right for right, is_held_out in marks if is_held_out]
    return Summary(sum(right for right, _ in marks), len(marks), sum(held_out), len(held_out))


def print_report(prompts: list[Prompt], answers: list[str], *, verbose: bool) -> None:
    """Wrong answers if wanted, counts per category, and the summary line."""
    total: Counter[tuple[str, bool]] = Counter()
    right: Counter[tuple[str, bool]] = Counter()
    for prompt, answer in zip(prompts, answers, strict=True):
        key = (prompt.category, prompt.held_out)
        total[key] += 1
        right[key] += prompt.is_right(answer)
        if verbose and not prompt.is_right(answer):
            mark = "held out" if prompt.held_out else "trained"
            print(f"wrong [{prompt.category}, {prompt.language}, {mark}] {prompt.question!r}")
            print(f"    got {answer!r}\n    not {prompt.expected!r}")
    for category, held_out in sorted(total):
        label = category + (" (held out)" if held_out else "")
        print(f"{label:26} {right[category, held_out]:4} of {total[category, held_out]}")
    print(summary(prompts, answers))
