"""Verdicts: rules against hand-made cases, a judge behind a real HTTP server, a user's own function."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gspo.verifiers import Attempt, Judge, Rules, Verdict
from gspo.verifiers.judge import verdict_of
from gspo.verifiers.own import Own
from gspo.verifiers.rules import evaluated, inconsistency, repeated_share


def attempt(text, reward=1.0, answer="20", **more):
    return Attempt(
        prompt_id=0, prompt="7+5+8=", text=text, answer=answer, reward=reward, is_cut=False, prompt_ids=(1,), ids=(2,),
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("7+5=12 12+8=20 20", ""),
        ("7 + 5 = 12, so 12 + 8 = 20.", ""),
        ("7+5=12 12+8=20 21", "the steps end in 20, the answer is 21"),
        ("7+5=13 13+8=21 21", "7+5 is 12, not 13"),
        ("2*3+4=10 10", ""),
        ("9-12=-3 -3", ""),
        ("20", "no step"),
        ("", "no step"),
    ],
)
def test_steps_are_recomputed(text, fault):
    assert inconsistency(text) == fault


@pytest.mark.parametrize("expression", ["2+3*4", "5--3", "-5+3*2-1", "2*3*4", "7-2*3-1", "1 + 2 - 3", "12"])
def test_expressions_are_what_python_makes_of_them(expression):
    assert evaluated(expression) == eval(expression)


def test_rules():
    rules = Rules(consistency="equations", ngram=2, max_repetition=0.5)
    verdicts = rules(
        [
            attempt("7+5=12 12+8=20 20"),
            attempt("7+5=12 12+8=20 21", reward=0.0),
            attempt("7+5=13 20"),
            attempt("7+5=12 so so so so so so so 12+8=20 20"),
        ]
    )
    assert [v.is_correct for v in verdicts] == [True, False, True, True]
    assert [v.is_consistent for v in verdicts] == [True, False, False, True]
    assert [v.is_repetitive for v in verdicts] == [False, False, False, True]
    assert [v.is_sound for v in verdicts] == [True, False, False, False]
    assert verdicts[2].note == "7+5 is 12, not 13" and "2-grams are repeats" in verdicts[3].note


def test_repetition_by_words_or_characters():
    assert repeated_share("a b c d", 2) == 0.0
    assert repeated_share("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert repeated_share("1111", 2) == pytest.approx(1 - 1 / 3) and repeated_share("1", 2) == 0.0


@contextmanager
def endpoint(answers: list) -> Iterator[tuple[str, list]]:
    """An OpenAI-compatible server that says these; an integer is a status code."""
    asked: list = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body, self.headers.get("Authorization")))
            said = answers[min(len(asked), len(answers)) - 1]
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            if not isinstance(said, int):
                self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


GOOD = 'Let me see. {"correct": true, "consistent": false, "repetitive": false, "note": "step 2 is wrong"}'


def test_a_judge_is_asked_about_every_attempt(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with endpoint([GOOD]) as (url, asked):
        judge = Judge(url=url, model="m", key_variable="MY_KEY", together=2)
        verdicts = judge([attempt("one"), attempt("two"), attempt("three")])
    assert verdicts == [Verdict(is_correct=True, is_consistent=False, note="step 2 is wrong")] * 3
    assert {path for path, *_ in asked} == {"/v1/chat/completions"} and asked[0][2] == "Bearer secret"
    questions = [body["messages"][0]["content"] for _, body, _ in asked]
    assert all(body["temperature"] == 0 and body["model"] == "m" for _, body, _ in asked)
    assert all("7+5+8=" in q and "20" in q for q in questions)
    assert sorted(w for q in questions for w in ("one", "two", "three") if f"\n{w}\n" in q) == ["one", "three", "two"]


def test_a_judge_is_asked_again_when_it_fails():
    with endpoint([503, "I cannot say.", GOOD]) as (url, asked):
        assert Judge(url=url, model="m")([attempt("x")])[0].is_correct
    assert len(asked) == 3


def test_a_judge_that_never_answers_stops_the_run_with_its_words():
    with endpoint(["I cannot say."]) as (url, _), pytest.raises(ValueError, match=r"judge m .* 2 attempts: .*I cannot"):
        Judge(url=url, model="m", attempts=2)([attempt("x")])


@pytest.mark.parametrize("said", ["", '{"correct": "yes"}', '{"correct": true}', "{correct: true}"])
def test_what_is_no_verdict(said):
    with pytest.raises(ValueError):
        verdict_of(said)


def test_a_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gspo.verifiers import Verdict\n"
        "def verify(attempts): return [Verdict(is_correct='20' in a.text) for a in attempts]\n"
        "def wrong(attempts): return [True for a in attempts]\n"
        "def few(attempts): return []\n"
    )
    verdicts = Own(function=f"{file}:verify")([attempt("20"), attempt("21")])
    assert [v.is_sound for v in verdicts] == [True, False]
    for name, words in (("wrong", "returned a bool"), ("few", "0 verdicts for 1 attempts")):
        with pytest.raises(ValueError, match=words):
            Own(function=f"{file}:{name}")([attempt("20")])
