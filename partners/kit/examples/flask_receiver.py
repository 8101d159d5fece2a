"""The same with Flask (`pip install flask`): only what differs from wsgi_receiver.py, whose store and work it uses."""

import threading

from flask import Flask, request
from wsgi_receiver import keep_working, receiver

app = Flask(__name__)
threading.Thread(target=keep_working, daemon=True).start()


@app.post("/")
def receive():
    status, headers, body = receiver.receive(request.headers, request.get_data())
    return body, status, headers
