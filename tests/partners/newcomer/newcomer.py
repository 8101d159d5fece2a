"""A partner's first receiver, written from the guide and the kit's README. It goes on after a kill."""

import json
import os
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from removal_kit import Client, KitError, Receiver, read_notice

db = sqlite3.connect(os.environ["STORE"], isolation_level=None, check_same_thread=False, timeout=10)
db.execute("CREATE TABLE IF NOT EXISTS notices (epoch, sequence, raw, done, PRIMARY KEY (epoch, sequence))")
url = os.environ["SERVICE_URL"]
client = Client(url, os.environ["API_KEY"], allow_http=url.startswith("http://127.0.0.1"))


def take(notice):
    values = (notice.epoch, notice.sequence, json.dumps(notice.raw), notice.withdrawn)
    db.execute("INSERT OR IGNORE INTO notices VALUES (?, ?, ?, ?)", values)


def remind(message):
    print("reminded of", [due["sequence"] for due in message.data["due"]], flush=True)


receiver = Receiver(os.environ["PARTNER"], take, secrets=[os.environ["SECRET"]], remind=remind)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, answer = receiver.receive(list(self.headers.items()), body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)


def remove(notice):
    listed = client.items(notice.items_url) if notice.items_url else notice.items
    whole = [(release, "all") for release in notice.releases]
    for name, items in whole if notice.kind == "offboarding" else listed:
        print("removed", notice.sequence, name, 1 if isinstance(items, str) else len(items), flush=True)
    line = {"epoch": notice.epoch, "sequence": notice.sequence, "status": "completed"}
    return {**line, "outcomes": {"removed": notice.items_total}} if notice.items_total else line


threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever).start()
while True:
    for epoch, sequence, raw in db.execute("SELECT epoch, sequence, raw FROM notices WHERE NOT done").fetchall():
        try:
            answer = client.acknowledge([remove(read_notice(json.loads(raw), epoch))])
            done = 2 if answer.refused else 1  # 2: somebody must look at it
            db.execute("UPDATE notices SET done = ? WHERE epoch = ? AND sequence = ?", (done, epoch, sequence))
            print(answer, flush=True)
        except KitError as error:
            print("later:", error, flush=True)
    time.sleep(0.3)
