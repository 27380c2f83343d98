"""What bring-up sees of an engine: /health, /v1/models, /v1/completions. `URL BEHAVIOUR`.

serves     answers as it should
dies       writes its last words and ends with exit code 3
silent     listens and is never healthy
late       its first list of models breaks off, all later ones are right
other      serves another model
refuses    completions are 500
cuts       hangs up in the middle of a stream
stops      is stopped by a signal at its first completion
stops-at-start  the same before it listens
hangs-later     serves three completions, and then none
unlinked   completions of prompts prefilled elsewhere are 500, its own are well
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

URL, BEHAVIOUR = urlsplit(sys.argv[1]), sys.argv[2]
MODEL = "other" if BEHAVIOUR == "other" else "qwen3-moe"
asked_for_models = 0
completions = 0


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # of chunked answers

    def do_GET(self) -> None:
        global asked_for_models
        if self.path == "/health":
            self.answer(503 if BEHAVIOUR == "silent" else 200, {})
            return
        asked_for_models += 1
        if BEHAVIOUR == "late" and asked_for_models == 1:
            self.close_connection = True
            return
        self.answer(200, {"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        global completions
        completions += 1
        if BEHAVIOUR == "hangs-later" and completions > 3:
            time.sleep(60)  # longer than any test waits; the process ends before
        if BEHAVIOUR == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        unlinked = BEHAVIOUR == "unlinked" and "kv_transfer_params" in body
        if BEHAVIOUR == "refuses" or unlinked:
            self.answer(500, {"error": "KV transfer failed"})
            return
        choice = {"text": "hi", "token_ids": [1], "finish_reason": "length"}
        if body.get("stream"):
            self.stream(choice)
            return
        self.answer(200, {"choices": [choice], "kv_transfer_params": {"of": body["prompt"]}})

    def stream(self, choice: object) -> None:
        """One event and the end; a decoder that cuts sends the event only, and hangs up."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in (json.dumps({"choices": [choice]}), "[DONE]"):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if BEHAVIOUR == "cuts":
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status: int, data: object) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not one line per poll."""


if BEHAVIOUR == "dies":
    print("INFO loading weights")
    print("ModuleNotFoundError: No module named 'llm_datadist'", flush=True)
    sys.exit(3)
if BEHAVIOUR == "stops-at-start":
    os.kill(os.getpid(), signal.SIGSTOP)
print("INFO serving", flush=True)
ThreadingHTTPServer((URL.hostname or "", URL.port or 0), Engine).serve_forever()
