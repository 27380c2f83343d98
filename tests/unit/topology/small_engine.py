"""What bring-up sees of an engine: /health, /v1/models, /v1/completions. `URL BEHAVIOUR`.

serves     answers as it should
dies       writes its last words and ends with exit code 3
silent     listens and is never healthy
late       its first list of models breaks off, all later ones are right
other      serves another model
refuses    completions are 500
unlinked   completions of prompts prefilled elsewhere are 500, its own are well
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

URL, BEHAVIOUR = urlsplit(sys.argv[1]), sys.argv[2]
MODEL = "other" if BEHAVIOUR == "other" else "qwen3-moe"
asked_for_models = 0


class Engine(BaseHTTPRequestHandler):
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
        unlinked = BEHAVIOUR == "unlinked" and "kv_transfer_params" in body
        if BEHAVIOUR == "refuses" or unlinked:
            self.answer(500, {"error": "KV transfer failed"})
            return
        choice = {"text": "hi", "token_ids": [1], "finish_reason": "length"}
        self.answer(200, {"choices": [choice], "kv_transfer_params": {"of": body["prompt"]}})

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
print("INFO serving", flush=True)
ThreadingHTTPServer((URL.hostname or "", URL.port or 0), Engine).serve_forever()
