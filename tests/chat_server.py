"""A chat-completions endpoint on loopback: real HTTP, a real tiny model behind it, and failures when told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.text.token_bytes import VocabularyBytes
from lightning_modules.model.generation import generate_completions


@dataclass
class ChatServer:
    """What the endpoint does, and what it was asked.

    Attributes:
        url: Up to `/v1`.
        model: The tiny model's folder.
        key: The only one that is let in; None lets all in.
        fail: What to answer to the request of this number, counted from 0, in place of a completion: (status, body,
            headers); None to answer.
        dies_after: After this many requests the server is gone; it answers those.
        hold: Called with each request's number before it is answered; may wait, see `released`.
        released: What a test's `hold` may wait for; it is set at the latest when the block of `serve` ends.
        vocabulary: Of the model; set it to return log-probabilities to who asks.
        returns_end: Whether they go on to the token that ended the answer, as vLLM's do, and OpenAI's do not.
        change: Changes them before they are sent.
        reasoning: What each answer has as its `reasoning_content`; None has none.
        bodies: Of all requests.
        most_at_once: Most requests that were open at a time.
    """

    url: str
    model: str
    key: str | None = None
    fail: Callable[[int], tuple[int, str, dict] | None] = lambda number: None
    dies_after: int | None = None
    hold: Callable[[int], object] = lambda number: None
    released: threading.Event = field(default_factory=threading.Event)
    reasoning: str | None = None
    vocabulary: VocabularyBytes | None = None
    returns_end: bool = True
    change: Callable[[list[dict]], object] = lambda content: content
    bodies: list[dict] = field(default_factory=list)
    num_answers: int = 0
    open_requests: int = 0
    most_at_once: int = 0

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def serve(folder: str) -> Iterator[ChatServer]:
    """Serves the model in a folder until the block ends."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    lock, end = threading.Lock(), tokenizer.eos_token_id

    @torch.no_grad()
    def describe_tokens(prompt: list[int], written: list[int], number: int) -> list[dict]:
        """Returns `logprobs.content` as OpenAI documents it."""
        log_p = model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

        def describe(token: int, row: torch.Tensor) -> dict:
            name = tokenizer.convert_ids_to_tokens(token)
            spelt = state.vocabulary.tokens[token] or name.encode()
            return {"token": spelt.decode(errors="replace"), "bytes": list(spelt), "logprob": row[token].item()}

        return [
            describe(token, row) | {"top_logprobs": [describe(best, row) for best in row.topk(number).indices.tolist()]}
            for token, row in zip(written, log_p, strict=True)
        ]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, body: str, headers: dict) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if state.dies_after is not None and len(state.bodies) >= state.dies_after:
                    self.close_connection = True
                    return
                number = len(state.bodies)
                state.bodies.append(body)
                state.open_requests += 1
                state.most_at_once = max(state.most_at_once, state.open_requests)
            state.hold(number)
            # Before the reply, after which the client may send the next.
            with lock:
                state.open_requests -= 1
            if state.key is not None and self.headers["Authorization"] != f"Bearer {state.key}":
                said = {"error": {"message": f"wrong key {self.headers['Authorization']}", "code": "invalid"}}
                self.reply(401, json.dumps(said), {})
            elif failure := state.fail(number):
                self.reply(*failure)
            else:
                self.answer(body)

        def answer(self, body: dict) -> None:
            assert self.path == "/v1/chat/completions"
            [message] = body["messages"]
            prompt = tokenizer(message["content"])["input_ids"]
            with lock:
                [(ids, reason)] = generate_completions(
                    model, [prompt], [end], body["max_tokens"], body["temperature"], [body.get("seed", 0)]
                )
                state.num_answers += 1
            message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
            if state.reasoning is not None:
                message["reasoning_content"] = state.reasoning
            log_probs = None
            if body.get("logprobs") and state.vocabulary is not None:
                written = [*ids, end] if reason == "stop" and state.returns_end else ids
                log_probs = {"content": state.change(describe_tokens(prompt, written, body.get("top_logprobs", 0)))}
            reply = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": f"{body['model']}-2026",
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": reason,
                        "logprobs": log_probs,
                    }
                ],
                "usage": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": len(ids) + (reason == "stop"),
                    "total_tokens": len(prompt) + len(ids),
                },
            }
            self.reply(200, json.dumps(reply), {})

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:
            """A client that was refused, or gave up, hangs up before the reply."""

    server = Server(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1", folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
