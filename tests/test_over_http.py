"""An engine in another process: the whole attack with nothing but its port, and what is said when something fails."""

import subprocess
import sys
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_connection, socket

import pytest
import torch
from safetensors.torch import save

from robret_lib.attacks import AutoPGD, QueryBudgetSpent
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.cross_modal import (
    BlackBox,
    CodeOracle,
    EngineError,
    encoder,
    encoder_at,
    over_http,
    server,
    serving,
)
from robret_lib.training import Schedule
from tests.small_cross_modal import seeded, small_engine, small_networks, some_pairs

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 60

ENGINE = """
import sys

from robret_lib.cross_modal import server
from tests.small_cross_modal import small_engine

engine = server(small_engine().oracle(budget=int(sys.argv[1])))
print(engine.server_port, flush=True)
engine.serve_forever()
"""


@pytest.fixture
def port_of_another_process():
    command = [sys.executable, "-c", ENGINE, str(BUDGET)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def attack(oracle):
    """All of AACH, by an attacker who has pairs and queries without labels, and an oracle: what comes of it."""
    pairs, queries = some_pairs(BUDGET, seed=3)[:2], some_pairs(20, seed=4)._replace(labels=None)
    box = BlackBox.of(oracle, *pairs, small_networks(seed=1), Schedule(100, batch=20, lr=5e-3))
    searches = {"images": AutoPGD(32 / 255, 20), "texts": WordFlips(3)}
    found = {kind: box.attacked(kind, getattr(queries, kind), how).images for kind, how in searches.items()}
    return box.answers, found


def test_an_engine_in_another_process_is_attacked_as_one_in_this(port_of_another_process):
    """Bit for bit. What attacks knows the port alone: this process has no engine until the attack is over."""
    answers, found = attack(CodeOracle(encoder_at(port_of_another_process)))
    with pytest.raises(QueryBudgetSpent, match=f"{BUDGET + 1} pairs asked for: the budget is {BUDGET} pairs"):
        encoder_at(port_of_another_process)(answers.images[:1], answers.bags[:1])

    engine = small_engine()
    answers_here, here = attack(engine.oracle(BUDGET))
    for there, expected in zip(answers, answers_here, strict=True):
        assert torch.equal(there, expected) and there.dtype == expected.dtype
    queries = some_pairs(20, seed=4)
    for kind in ("images", "texts"):
        clean = getattr(queries, kind)
        assert torch.equal(found[kind], here[kind]) and not torch.equal(found[kind], clean)
        before, after = (engine.precisions(kind, given, queries.labels).mean() for given in (clean, found[kind]))
        assert after < before - 5
    assert (found["images"] - queries.images).abs().max() <= 32 / 255 + 1e-6
    assert (found["texts"] != queries.texts).flatten(1).sum(1).max() <= 3


# --- the other side's words -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle():
    return CodeOracle(encoder(small_networks().double()))


@pytest.fixture(scope="module")
def port(oracle):
    with serving(oracle) as port:
        yield port


@pytest.fixture
def pairs():
    return some_pairs(6, seed=4)[:2]


def test_the_codes_are_those_of_the_engine(oracle, port, pairs):
    stored = (255 * pairs[0]).round().to(torch.uint8), pairs[1]
    last = pairs[0].contiguous(memory_format=torch.channels_last), pairs[1].expand(-1, 1, 1, -1)
    for given in (pairs, stored, last):
        for found, expected in zip(encoder_at(port)(*given), oracle(*given)[2:], strict=True):
            assert torch.equal(found, expected) and found.dtype == torch.int8


def test_it_is_counted_on_both_sides(oracle, port, pairs):
    before, mine = oracle.asked, CodeOracle(encoder_at(port), budget=8)
    mine(*pairs)
    with pytest.raises(QueryBudgetSpent, match="12 pairs asked for: the budget is 8 pairs"):
        mine(*pairs)
    assert mine.asked == 6 and oracle.asked - before == 6


def test_a_budget_of_the_engine_is_none_of_the_attacker(pairs):
    """Who counts nothing is told all the same, and what was not answered is charged nowhere."""
    engine = CodeOracle(encoder(small_networks()), budget=7)
    with serving(engine) as port:
        mine = CodeOracle(encoder_at(port))
        mine(*pairs)
        with pytest.raises(QueryBudgetSpent, match="12 pairs asked for: the budget is 7 pairs"):
            mine(*pairs)
        assert mine.asked == engine.asked == 6
        mine(*(part[:1] for part in pairs))
    assert mine.asked == engine.asked == 7


ODD = {
    "shape": torch.rand(6, 3, 5, 5),
    "type": torch.ones(6, 3, 4, 4).long(),
    "number": torch.rand(5, 3, 4, 4),
    "scalar": torch.tensor(0.5),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_the_engine_cannot_encode_it_says_and_nothing_of_its_networks(odd, oracle, port, pairs):
    before = oracle.asked
    with pytest.raises(EngineError) as raised:
        encoder_at(port)(ODD[odd], pairs[1])
    assert str(raised.value) == over_http.UNDERSTOOD
    assert oracle.asked == before
    encoder_at(port)(*pairs)  # and answers the next


def posted(port, path, question, **headers):
    """Status and words."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, question, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


QUESTIONS = {
    "garbage": ("/codes", b"what is this?", (400, over_http.UNDERSTOOD)),
    "nothing": ("/codes", b"", (400, over_http.UNDERSTOOD)),
    "half": ("/codes", save({"images": torch.rand(2, 3, 4, 4)}), (400, over_http.UNDERSTOOD)),
    "elsewhere": ("/weights", b"", (404, "expected /codes")),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_garbage_is_answered_in_words(question, oracle, port, pairs):
    path, content, (status, said) = QUESTIONS[question]
    before = oracle.asked
    found = posted(port, path, content)
    assert found[0] == status and found[1].startswith(said)
    assert oracle.asked == before
    encoder_at(port)(*pairs)


@pytest.mark.parametrize("size", [str(over_http.LARGEST + 1), "-1", "many"])
def test_a_question_of_such_a_size_is_not_read(size, port, pairs):
    """The engine would wait for it; here nothing of it is ever sent."""
    found = posted(port, "/codes", None, **{"Content-Length": size})
    assert found == (413, f"a question of {size} bytes: expected at most {over_http.LARGEST}")
    encoder_at(port)(*pairs)


def test_too_large_a_question_is_not_sent(port, oracle, pairs, monkeypatch):
    monkeypatch.setattr(over_http, "LARGEST", 1000)
    before, mine = oracle.asked, CodeOracle(encoder_at(port))
    with pytest.raises(EngineError, match="a question of [0-9]{4} bytes: expected at most 1000; ask for fewer pairs"):
        mine(*pairs)
    assert mine.asked == 0 and oracle.asked == before
    mine(*(part[:1] for part in pairs))


@pytest.fixture
def silent_port():
    """A port on which nobody listens, and which nobody else can take."""
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_an_engine_that_is_not_there_is_said_to_be_unreachable(silent_port, pairs):
    oracle = CodeOracle(encoder_at(silent_port))
    with pytest.raises(EngineError, match=f"no answer from 127.0.0.1:{silent_port}: .*refused"):
        oracle(*pairs)
    assert oracle.asked == 0


def test_a_proxy_of_the_environment_is_not_asked(port, silent_port, pairs, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent_port}")
    assert len(encoder_at(port)(*pairs)[0]) == 6


REPLIES = {
    "other protocol": b"220 mail.example.org\r\n\r\n",
    "nothing": b"",
    "cut short": b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789",
    "no tensors": b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
    "other tensors": b"HTTP/1.0 200 OK\r\n\r\n" + save({"codes": torch.ones(1)}),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_whatever_else_answers_is_no_engine(reply, pairs):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(REPLIES[reply])

        def log_message(self, *said):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        try:
            with pytest.raises(EngineError, match=f"no answer from 127.0.0.1:{other.server_port}: "):
                encoder_at(other.server_port)(*pairs)
        finally:
            thread.join()


def test_a_question_without_an_end_keeps_nobody_waiting(oracle, pairs):
    with server(oracle, patience=0.2) as engine:
        thread = threading.Thread(target=engine.serve_forever)
        thread.start()
        try:
            with create_connection(engine.server_address) as asking:
                asking.sendall(f"POST {over_http.PATH} HTTP/1.0\r\nContent-Length: 100\r\n\r\n0123456789".encode())
                assert len(encoder_at(engine.server_port)(*pairs)[0]) == 6
                assert asking.recv(1) == b""
        finally:
            engine.shutdown()
            thread.join()


def test_an_engine_is_heard_on_this_machine_alone(oracle):
    with server(oracle) as first, server(oracle) as second:
        assert first.server_address[0] == second.server_address[0] == "127.0.0.1"
        assert first.server_port != second.server_port


def test_serving_ends_also_after_an_error(oracle):
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), serving(oracle):
        started = set(threading.enumerate()) - before
        raise KeyboardInterrupt
    assert len(started) == 1 and not any(thread.is_alive() for thread in started)


def test_a_pair_has_the_same_codes_in_any_company(port, pairs):
    images = torch.cat([pairs[0], torch.rand(4, 3, 4, 4, generator=seeded())])
    bags = torch.cat([pairs[1], pairs[1][:4]])
    for whole, part in zip(encoder_at(port)(images, bags), encoder_at(port)(*pairs), strict=True):
        assert torch.equal(whole[:6], part)
