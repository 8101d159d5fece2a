"""What delivery is compared with: the textbook, one Celery task for each notice.

The task reads its row, writes one for the try, signs, calls ``requests.post``, and ``save()``s what came of it; Celery
retries it. So it keeps what ours keeps of each try, though with no lease and no fence. Its database connections stay
open (CELERY_DB_REUSE_MAX), as most installations' do not: without it the figure halves.

``celery --app tests.bench.baseline worker`` runs it, on the database of DATABASE_URL and the broker of BASELINE_BROKER.
"""

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from typing import ClassVar

import django
import requests
from celery import Celery, Task
from django.db import connection, models
from django.utils import timezone

django.setup()  # the model below needs it, and Celery would call it only after this import

QUEUE = os.environ.get("BASELINE_QUEUE", "removal-baseline")
TIMEOUT_SECONDS = 10

app = Celery("baseline", broker=os.environ.get("BASELINE_BROKER", "memory://"))
app.conf.update(
    CELERY_DB_REUSE_MAX=1000,
    task_ignore_result=True,
    task_default_queue=QUEUE,
    worker_hijack_root_logger=False,
)


class Delivery(models.Model):
    url = models.URLField()
    secret = models.CharField(max_length=100)
    webhook_id = models.CharField(max_length=100, unique=True)
    body = models.TextField()
    state = models.CharField(max_length=20, default="pending")
    attempts = models.PositiveIntegerField(default=0)
    status = models.PositiveIntegerField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    delivered_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager["Delivery"]] = models.Manager()

    class Meta:
        app_label = "baseline"
        managed = False

    def __str__(self) -> str:
        return self.webhook_id


class Attempt(models.Model):
    delivery = models.ForeignKey(Delivery, models.CASCADE, related_name="tries")
    started_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)
    status = models.PositiveIntegerField(null=True)
    response = models.TextField(default="")

    objects: ClassVar[models.Manager["Attempt"]] = models.Manager()

    class Meta:
        app_label = "baseline"
        managed = False

    def __str__(self) -> str:
        return f"try {self.pk}"


@app.task(bind=True, autoretry_for=(requests.RequestException,), retry_backoff=True, max_retries=8)
def deliver(task: Task, delivery_id: int) -> None:  # type: ignore[type-arg]  # a Task's parameters say nothing here
    delivery = Delivery.objects.get(pk=delivery_id)
    attempt = Attempt.objects.create(delivery=delivery)
    timestamp = str(int(time.time()))
    signed = f"{delivery.webhook_id}.{timestamp}.{delivery.body}".encode()
    key = base64.b64decode(delivery.secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    response = requests.post(
        delivery.url,
        data=delivery.body.encode(),
        headers={
            "Content-Type": "application/json",
            "webhook-id": delivery.webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
        },
        timeout=TIMEOUT_SECONDS,
    )
    attempt.finished_at = timezone.now()
    attempt.status = response.status_code
    attempt.response = response.text[:2000]
    attempt.save()
    delivery.attempts += 1
    delivery.status = response.status_code
    if response.ok:
        delivery.state = "delivered"
        delivery.delivered_at = timezone.now()
    delivery.save()
    response.raise_for_status()


def create_table() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Delivery)
        editor.create_model(Attempt)


def enqueue(messages: Iterable[tuple[str, bytes]], *, url: str, secret: str) -> None:
    """Make a row and a task of each message (its id, its body)."""
    made = Delivery.objects.bulk_create(
        Delivery(url=url, secret=secret, webhook_id=message_id, body=body.decode()) for message_id, body in messages
    )
    for delivery in made:
        deliver.delay(delivery.pk)
