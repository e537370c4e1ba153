"""An engine in another process: codes over HTTP on the loopback address, for attacks that must get nothing else.

A question and an answer are ``.safetensors`` files, so that nothing is unpickled on either side.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robret_lib.attacks.oracle import QueryBudgetSpent
from robret_lib.cross_modal.oracle import CodeOracle, Encode

LOG = logging.getLogger(__name__)

LOOPBACK, PATH = "127.0.0.1", "/codes"
LARGEST = 2**30
"""Bytes of a question that an engine still reads."""

UNDERSTOOD = "expected a .safetensors file of images and bags, as many of each, as this engine takes them"

TIMEOUT = 300  # seconds


class EngineError(RuntimeError):
    """An engine could not be reached, or would not answer; the message is its own."""


def server(oracle: CodeOracle, port: int = 0, patience: float = TIMEOUT) -> HTTPServer:
    """A server of an oracle, not yet serving, on the loopback address; port 0 takes a free one.

    It waits so many seconds for the next part of a question, then it hangs up.

    ``server.server_port`` is the port; ``server.serve_forever()`` serves.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = patience  # a question that does not come to its end would keep all others waiting

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > LARGEST:
                self._reply(413, f"a question of {size or 'unknown'} bytes: expected at most {LARGEST}".encode())
            else:
                self._reply(*answer(oracle, self.path, self.rfile.read(int(size))))

        def _reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *said: object) -> None:
            """Questions are not logged."""

    return HTTPServer((LOOPBACK, port), Handler)


def answer(oracle: CodeOracle, path: str, question: bytes) -> tuple[int, bytes]:
    """HTTP status and content: two codes; or what was wrong, in words."""
    if path != PATH:
        return 404, f"expected {PATH}".encode()
    try:
        asked = load(question)
        found = oracle(asked["images"], asked["bags"])
    except QueryBudgetSpent as error:
        return 429, str(error).encode()
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
        LOG.exception("a question without an answer")  # here alone: the words of an error may tell of the networks
        return 400, UNDERSTOOD.encode()
    return 200, save({"image_codes": found.image_codes, "text_codes": found.text_codes})


@contextmanager
def serving(oracle: CodeOracle) -> Iterator[int]:
    """A server in a thread, while inside; yields its port."""
    engine = server(oracle)
    thread = Thread(target=engine.serve_forever, daemon=True)
    thread.start()
    try:
        yield engine.server_port
    finally:
        engine.shutdown()
        thread.join()
        engine.server_close()


def encoder_at(port: int) -> Encode:
    """How an engine behind a port of this machine encodes; for `CodeOracle`, which counts on this side as well.

    Raises, when it is called:
        QueryBudgetSpent: The engine answers no more.
        EngineError: It cannot be reached, or does not understand.
    """
    directly = build_opener(ProxyHandler({}))  # a proxy that the environment names does not know this machine's engines

    def encode(images: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        question = save({"images": images.cpu().contiguous(), "bags": bags.cpu().contiguous()})
        if len(question) > LARGEST:  # an engine that does not read it may be gone before it is sent
            raise EngineError(f"a question of {len(question)} bytes: expected at most {LARGEST}; ask for fewer pairs")
        try:
            with directly.open(Request(f"http://{LOOPBACK}:{port}{PATH}", data=question), timeout=TIMEOUT) as response:
                found = load(response.read())
            codes = found["image_codes"], found["text_codes"]
        except HTTPError as error:
            said = error.read().decode(errors="replace")
            raise (QueryBudgetSpent(said) if error.code == 429 else EngineError(said)) from error
        except (URLError, OSError, HTTPException, SafetensorError, KeyError) as error:
            raise EngineError(f"no answer from {LOOPBACK}:{port}: {error}") from error
        return codes[0].to(images.device), codes[1].to(bags.device)

    return encode
