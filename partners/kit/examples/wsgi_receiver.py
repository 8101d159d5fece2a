"""Keeps notices in SQLite, removes (prints) and answers them. Set PARTNER, SECRET, API_KEY, SERVICE_URL, PORT, STORE"""

import json
import sqlite3
import threading
import time
from os import environ
from wsgiref.simple_server import make_server

from removal_kit import MAX_BODY_BYTES, Client, KitError, Receiver, read_notice

client = Client(environ["SERVICE_URL"], environ["API_KEY"], allow_http="//127.0.0.1:" in environ["SERVICE_URL"])
db = sqlite3.connect(environ["STORE"], isolation_level=None, check_same_thread=False)  # each statement commits
db.execute("CREATE TABLE IF NOT EXISTS notices (epoch, sequence, raw, state, PRIMARY KEY (epoch, sequence))")


def take(notice):
    values = (notice.epoch, notice.sequence, json.dumps(notice.raw), "done" if notice.withdrawn else "new")
    db.execute("INSERT OR IGNORE INTO notices VALUES (?, ?, ?, ?)", values)


def keep_working():
    while True:
        for row, epoch, sequence, raw, _ in db.execute("SELECT rowid, * FROM notices WHERE state = 'new'").fetchall():
            try:
                notice = read_notice(json.loads(raw), epoch)
                whole = [(name, "all") for name in notice.releases if notice.kind == "offboarding"]  # it lists nothing
                for name, items in client.items(notice.items_url) if notice.items_url else whole or notice.items:
                    print("removed", sequence, name, items, flush=True)
                outcomes = {"removed": notice.items_total} if notice.items_total else {}
                line = {"epoch": epoch, "sequence": sequence, "status": "completed", "outcomes": outcomes}
                said = client.acknowledge([line])
                print(said, flush=True)  # what was refused is not tried again: somebody must look at it
                db.execute("UPDATE notices SET state = ? WHERE rowid = ?", ("refused" if said.refused else "done", row))
            except KitError as error:
                print("later:", sequence, error, flush=True)
        time.sleep(0.5)


receiver = Receiver(environ["PARTNER"], take, secrets=[environ["SECRET"]])


def application(request, start_response):
    headers = [(name[5:].replace("_", "-"), value) for name, value in request.items() if name.startswith("HTTP_")]
    body = request["wsgi.input"].read(min(int(request.get("CONTENT_LENGTH") or 0), MAX_BODY_BYTES + 1))
    status, headers, body = receiver.receive(headers, body)
    start_response(f"{status} -", list(headers.items()))
    return [body]


if __name__ == "__main__":
    threading.Thread(target=keep_working, daemon=True).start()
    make_server("127.0.0.1", int(environ["PORT"]), application).serve_forever()
