"""Tools: reading calls, running them, and the environment made of them."""

import asyncio
import time
from typing import Any

import pytest
from real_environments import play

from gspo.envs.check import check_env
from gspo.envs.tool_calls import ToolCall, tool_calls
from gspo.envs.tools import Reply, ToolBox, ToolResult, tool_schema, tools_env

SIGNATURES = {"calc": ["expression"], "add": ["a", "b"]}


def calc(expression: str) -> str:
    """Computes an expression.

    Args:
        expression: What to compute, as 17*24.
    """
    return str(eval(expression, {}))


async def add(a: int, b: int = 1) -> int:
    """Adds two whole numbers.

    Args:
        a: The first.
        b: The second.
    """
    await asyncio.sleep(0)
    return a + b


def hang() -> None:
    """Takes very long."""
    time.sleep(60)


async def hang_politely() -> None:
    """Takes very long, too."""
    await asyncio.sleep(60)


def leave() -> None:
    """Tries to end the process."""
    raise SystemExit(3)


def items(names: list[str], **more: Any) -> dict[str, Any]:
    """Gives back what it is given."""
    return {"names": names, **more}


def run(box: ToolBox, *calls: ToolCall) -> list[ToolResult]:
    return asyncio.run(box.run(calls))


def said(box: ToolBox, text: str) -> list[str]:
    return [result.content for result in run(box, *box.read(text))]


def test_a_schema_comes_from_hints_and_docstring():
    function = tool_schema(add)["function"]
    assert function["name"] == "add"
    assert function["parameters"]["properties"]["a"] == {"type": "integer", "description": "The first."}
    assert function["parameters"]["required"] == ["a"]
    with pytest.raises(ValueError, match="type hint for each argument, and a docstring"):
        tool_schema(lambda x: x)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', [("add", {"a": 1})]),
        (
            'Both: <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n'
            '<tool_call>{"name": "calc", "arguments": {"expression": "2"}}</tool_call>',
            [("add", {"a": 1}), ("calc", {"expression": "2"})],
        ),
        (
            '<tool_call>[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]</tool_call>',
            [("add", {"a": 1}), ("add", {"a": 2})],
        ),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}', [("add", {"a": 1})]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', [("add", {"a": 1})]),
        ('{"name": "add", "parameters": {"a": 1}}', [("add", {"a": 1})]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', [("add", {"a": 1})]),
        (
            '{"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {"a": 2}}',
            [("add", {"a": 1}), ("add", {"a": 2})],
        ),
        ("calc(17*24)", [("calc", {"expression": "17*24"})]),
        ("calc('17*24')", [("calc", {"expression": "17*24"})]),
        ("calc(expression=max(1, 2))", [("calc", {"expression": "max(1, 2)"})]),
        ("calc(max(1, 2))", [("calc", {"expression": "max(1, 2)"})]),
        ("add(1, b=3)", [("add", {"a": 1, "b": 3})]),
        ("add('1, 2', (3, 4))", [("add", {"a": "1, 2", "b": (3, 4)})]),
        ("think first\ncalc(1)\nadd(2)", [("calc", {"expression": 1}), ("add", {"a": 2})]),
        ("the answer is 408", []),
        ("f(x) = 3", []),
        ("f(x)", []),
        ("with calc(1) one could", []),
        ('{"answer": 408}', []),
        ('{"name": "Bob"}', []),
        ("", []),
    ],
)
def test_calls_are_found(text: str, calls: list[tuple[str, dict]]):
    found = tool_calls(text, SIGNATURES)
    assert [(call.name, call.arguments) for call in found] == calls
    assert not any(call.fault for call in found)


def test_the_format_may_be_said():
    assert tool_calls("calc(1)", SIGNATURES, "hermes") == []
    assert tool_calls('<tool_call>{"name": "add"}</tool_call>', SIGNATURES, "json") == []
    assert tool_calls("calk(1)", SIGNATURES, "call") == [ToolCall(name="calk")]
    assert tool_calls("calk(1)", SIGNATURES, "auto") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<tool_call>{"name": </tool_call>', "not JSON"),
        ("<tool_call></tool_call>", "empty"),
        ("<tool_call>[1]</tool_call>", 'needs "name" and "arguments", not 1'),
        ('<tool_call>{"name": "add", "arguments": 5}</tool_call>', "must be an object, not 5"),
        ('<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "arguments of add are not JSON"),
        ('{"name": "add", "parameters": {"a": 1}', "not JSON"),
        ("<tool_call>" + "[" * 100_000, "not JSON"),
        ('<tool_call>{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>", "not JSON"),
        ("add(1, 2, 3)", "takes 2 arguments, not 3"),
        ("add(1, a=2)", "given a twice"),
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "no tool is called sub; there are: calc, add"),
        ("add(b=2)", "argument a: Field required"),
        ("add(a=1, c=2)", "argument b: Input should be a valid integer"),
        ("add('one')", "argument a: Input should be a valid integer, unable to parse string as an integer, not 'one'"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "x": 2}}</tool_call>', "argument x: Extra inputs"),
        ("calc(1/0)", "ZeroDivisionError: division by zero"),
        ("calc(10**5000)", "ValueError: Exceeds the limit"),
        ("leave()", "RuntimeError: SystemExit: 3"),
    ],
)
def test_what_goes_wrong_is_said_in_words(text: str, words: str):
    box = ToolBox([calc, add, leave])
    (result,) = run(box, *box.read(text))
    assert result.is_error
    assert result.content.startswith("error: ") and words in result.content


def test_results_are_text():
    box = ToolBox([calc, add, items])
    assert said(box, "calc(17*24)") == ["408"]
    assert said(box, "add('3')\nadd(4)") == ["4", "5"]
    assert said(box, "calc(7)") == ["7"]  # a number where text is wanted
    assert said(box, '<tool_call>{"name": "items", "arguments": {"names": ["ü"], "x": 1}}</tool_call>') == [
        '{"names": ["ü"], "x": 1}'
    ]


def test_long_results_are_cut_and_say_so():
    box = ToolBox([calc], max_output_characters=1200)
    (content,) = said(box, "calc(5000 * 'x')")
    assert content == "x" * 1200 + "... [cut: 1200 of 5000 characters]"


def test_a_tool_that_hangs_is_given_up_and_the_others_go_on():
    box = ToolBox([hang, hang_politely, add], deadline={"hang": 0.1, "hang_politely": 0.1})
    began = time.perf_counter()
    results = run(box, ToolCall(name="hang"), ToolCall(name="hang_politely"), ToolCall(name="add", arguments={"a": 1}))
    assert time.perf_counter() - began < 5
    assert [result.content for result in results] == [
        "error: hang gave no answer within 0.1 s",
        "error: hang_politely gave no answer within 0.1 s",
        "2",
    ]


def test_plain_tools_of_many_rollouts_run_side_by_side():
    def wait() -> None:
        time.sleep(0.2)

    box = ToolBox([wait])

    async def many() -> None:
        await asyncio.gather(*(box.run([ToolCall(name="wait")]) for _ in range(20)))

    began = time.perf_counter()
    asyncio.run(many())
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ToolBox([]), "one at least"),
        (lambda: ToolBox([calc, calc]), "distinct names"),
        (lambda: ToolBox([calc], deadline={"calk": 1.0}), "calk"),
        (lambda: ToolBox([calc], max_output_characters=0), "max_output_characters = 0"),
        (lambda: ToolBox([print]), "cannot be given by name"),
    ],
)
def test_a_box_refuses_what_cannot_be_tools(make: Any, words: str):
    with pytest.raises(ValueError, match=words):
        make()


def scored(text: str, row: dict) -> float:
    return float(text.strip() == row["answer"])


CHAT = {"prompt": [{"role": "user", "content": "17*24?"}], "answer": "408"}
TEXT = {"prompt": "17*24=", "answer": "408"}
CALL = '<tool_call>{"name": "calc", "arguments": {"expression": "17*24"}}</tool_call>'


def test_an_episode_of_messages():
    factory = tools_env([calc, add], score=scored)
    played = play(factory, CHAT, [CALL, "408"])
    first, answer, last = played.observations
    assert first.content == "" and [tool["function"]["name"] for tool in first.tools] == ["calc", "add"]
    assert answer.content == [{"role": "tool", "name": "calc", "content": "408"}]
    assert answer.facts == {"tool_calls": 1, "tool_errors": 0}
    assert last.is_done and played.reward == 1.0
    assert play(factory, CHAT, [CALL, "407"]).reward == 0.0
    assert play(factory, CHAT, [CALL.replace("calc", "calk")]).observations[1].facts["tool_errors"] == 1


def test_an_episode_of_bare_text():
    """For a model of single characters: results as text, errors in one word of its alphabet."""
    reply = Reply(text="\n{content}\n", error="bad")
    factory = tools_env([calc, add], format="call", reply=reply, score=scored)
    played = play(factory, TEXT, ["calc(17*24)", "add(1,2,3)", "408"])
    assert [o.content for o in played.observations[:3]] == ["", "\n408\n", "\nbad\n"]
    assert played.observations[0].tools == ()
    assert played.is_done and played.reward == 1.0


def test_without_a_score_the_runs_rewards_decide():
    assert play(tools_env([calc]), CHAT, ["408"]).reward == 0.0


def test_the_laws_hold():
    for row, actions in ((CHAT, [CALL, "408"]), (TEXT, ["calc(17*24)", "408"])):
        report = check_env(tools_env([calc, add], score=scored), [row], actions=actions)
        assert report.ok, report
