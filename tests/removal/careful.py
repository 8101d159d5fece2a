"""What a receiver must do, in a few lines: verify, look at whom a message is for, acknowledge."""

import json

from django.utils import timezone

from partners import signing
from tests.receivers import Received, Reply


def careful(message: Received, *, secret: str, slug: str = "acme") -> Reply:
    keys = [signing.HmacSecret.from_text(secret)]
    try:
        signing.verify(headers=message.headers, body=message.body, keys=keys, now=timezone.now())
    except signing.NotVerified:
        return Reply(401)
    if message.data["partner"] != slug:
        return Reply(403)
    receipts = [{"sequence": notice["sequence"], "status": "received"} for notice in message.data.get("notices", [])]
    return Reply(200, json.dumps({"acknowledgements": receipts}).encode())
