"""The families that share one shape: Mistral, DeepSeek, Granite and Command R."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.command_r import CommandR, CommandR7B
from nexa_runtime.chat.dialects.deepseek import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    SEPARATOR,
    DeepSeek,
    DeepSeekR1,
)
from nexa_runtime.chat.dialects.granite import Granite
from nexa_runtime.chat.dialects.mistral import Mistral, MistralArgs
from tests.chat.dialects.common import LIMA, LIMA_TEXT, TIME, TIME_TEXT, common
from tests.chat.dialects.transcripts import Transcript, check, check_mutated

Texts = tuple[str, str]


def mistral(*calls: Texts) -> str:
    inner = ", ".join(f'{{"name": "{name}", "arguments": {text}, "id": "Ab3456789"}}' for name, text in calls)
    return f"[TOOL_CALLS][{inner}]"


def mistral_args(*calls: Texts) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in calls)


def mistral_ids(*calls: Texts) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]Ab3456789[ARGS]{text}" for name, text in calls)


def deepseek_r1(*calls: Texts) -> str:
    inner = "\n".join(
        f"{CALL_BEGIN}function{SEPARATOR}{name}\n```json\n{text}\n```{CALL_END}" for name, text in calls
    )
    return CALLS_BEGIN + inner + CALLS_END


def deepseek(*calls: Texts) -> str:
    inner = "".join(f"{CALL_BEGIN}{name}{SEPARATOR}{text}{CALL_END}" for name, text in calls)
    return CALLS_BEGIN + inner + CALLS_END


def granite(*calls: Texts) -> str:
    inner = ", ".join(f'{{"name": "{name}", "arguments": {text}}}' for name, text in calls)
    return f"<|tool_call|>[{inner}]"


def granite_tags(*calls: Texts) -> str:
    return granite(*calls).replace("<|tool_call|>", "<tool_call>") + "</tool_call>"


def command_r(*calls: Texts) -> str:
    inner = ",\n".join(
        f'    {{\n        "tool_name": "{name}",\n        "parameters": {text}\n    }}'
        for name, text in calls
    )
    return f"Action:\n```json\n[\n{inner}\n]```"


def command_r_short(*calls: Texts) -> str:
    return command_r(*calls).replace("Action:\n", "Action: ")


def command_r7b(*calls: Texts) -> str:
    inner = ",\n".join(
        f'    {{"tool_call_id": "{index}", "tool_name": "{name}", "parameters": {text}}}'
        for index, (name, text) in enumerate(calls)
    )
    return f"<|START_ACTION|>[\n{inner}\n]<|END_ACTION|>"


DROPPED = ("<think>", "[THINK]", "<|START_THINKING|>", "<|START_RESPONSE|>", "<response>")
ONE = mistral(LIMA_TEXT)
TABLES: dict[type[Dialect], list[Transcript]] = {
    Mistral: [
        *common(mistral, Mistral.reasoning),
        Transcript("a space behind the mark", ONE.replace("][", "] ["), calls=(LIMA,)),
        Transcript("an object alone", '[TOOL_CALLS]{"name": "get_time", "arguments": {}}', calls=(TIME,)),
        Transcript("no call in the list", "Hi [TOOL_CALLS][]", content="Hi [TOOL_CALLS][]"),
        Transcript("no end of the list", f"{ONE[:-1]}, ", calls=(LIMA,)),
        Transcript(
            "the second unknown",
            f'{ONE[:-1]}, {{"name": "rm", "arguments": {{}}}}]',
            content='{"name": "rm", "arguments": {}}]',
            calls=(LIMA,),
        ),
    ],
    MistralArgs: [
        *common(mistral_args, Mistral.reasoning),
        *common(mistral_ids),
        *common(mistral),
        Transcript("no mark", '[TOOL_CALLS]get_time{"a": 1}', calls=(("get_time", {"a": 1}),)),
        Transcript("a name alone", "[TOOL_CALLS]get_time", "[TOOL_CALLS]get_time", is_constrained=(False,)),
        Transcript("a long name", f"[TOOL_CALLS]{'a' * 99}[ARGS]{{}}", f"[TOOL_CALLS]{'a' * 99}[ARGS]{{}}"),
    ],
    DeepSeekR1: [
        *common(deepseek_r1, DeepSeekR1.reasoning),
        *common(deepseek),
        Transcript(
            "no mark around the calls",
            deepseek_r1(LIMA_TEXT).replace(CALLS_BEGIN, "").replace(CALLS_END, ""),
            calls=(LIMA,),
        ),
        Transcript(
            "laid out as its own example",
            deepseek_r1(LIMA_TEXT, TIME_TEXT).replace("```" + CALL_END, "```\n" + CALL_END),
            calls=(LIMA, TIME),
        ),
        Transcript("no ends", deepseek_r1(LIMA_TEXT).split("\n```<")[0], calls=(LIMA,)),
    ],
    DeepSeek: [
        *common(deepseek, DeepSeek.reasoning),
        *common(deepseek_r1),
        Transcript(
            "the second unknown",
            deepseek(LIMA_TEXT, ("rm", "{}"), TIME_TEXT),
            content=f"{CALL_BEGIN}rm{SEPARATOR}{{}}{CALL_END}",
            calls=(LIMA, TIME),
        ),
        Transcript("nothing but marks", CALLS_BEGIN + CALLS_END, content=CALLS_BEGIN + CALLS_END),
    ],
    Granite: [
        *common(granite, Granite.reasoning),
        *common(granite_tags),
        Transcript(
            "wrapped content",
            "<think>Hm.</think>\n<response>\nHi <b>you</b>\n</response>",
            reasoning="Hm.",
            content="Hi <b>you</b>",
        ),
        Transcript(
            "a wrapped call", f"<response>{granite(LIMA_TEXT)}</response>\nBye", "Bye", calls=(LIMA,)
        ),
        Transcript("a wrapping without end", "<response>Hi </respo\n", content="Hi </respo\n"),
        Transcript("no wrapping", "A <response> b</response>", content="A <response> b</response>"),
    ],
    CommandR: [
        *common(command_r, has_marker=False),
        *common(command_r_short, has_marker=False),
        Transcript("plain actions", "Action: run!\nAction: ", content="Action: run!\nAction: ",
                   is_constrained=(False,)),
        Transcript(
            "a fence with something else", "Action:\n```json\n[1]\n```", content="Action:\n```json\n[1]\n```"
        ),
        Transcript(
            "a plan before it", f"Plan: look.\n{command_r(LIMA_TEXT)}", content="Plan: look.", calls=(LIMA,)
        ),
    ],
    CommandR7B: [
        *common(command_r7b, CommandR7B.reasoning),
        Transcript(
            "wrapped content",
            "<|START_RESPONSE|>Hi <co>you</co: 0:[1]><|END_RESPONSE|>", "Hi <co>you</co: 0:[1]>"
        ),
        Transcript(
            "reasoning and wrapped content",
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>",
            reasoning="Hm.",
            content="Hi",
        ),
        Transcript("no actions", "<|START_ACTION|>[]<|END_ACTION|>", "<|START_ACTION|>[]<|END_ACTION|>"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "transcript"),
    [
        pytest.param(kind, transcript, id=f"{kind.name}: {transcript}")
        for kind, transcripts in TABLES.items()
        for transcript in transcripts
    ],
)
def test_transcripts(kind: type[Dialect], transcript: Transcript) -> None:
    check(kind, transcript)


@given(st.sampled_from(list(TABLES)), st.integers(0, 2**32))
def test_whatever_comes(kind: type[Dialect], seed: int) -> None:
    check_mutated(kind, TABLES[kind], seed, dropped=DROPPED)
