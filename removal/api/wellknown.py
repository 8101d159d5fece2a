"""What anyone may ask: our public keys, and whether this process can work; and numbers for who watches it."""

from secrets import compare_digest

from django.conf import settings
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from ninja import Router

from partners import keys
from partners.models import Secret
from partners.signing import Ed25519PrivateKey
from removal import metrics
from removal.api import answers, contract

router = Router(tags=["public"])

CACHE_SECONDS = 300  # short beside a rotation's overlap, so that every receiver meets a new key in time


@router.get("/.well-known/removal-notices", auth=None, response=answers.PublishedKeys)
def show_keys(request: HttpRequest, response: HttpResponse) -> answers.PublishedKeys:
    """Show the Ed25519 keys that our messages are signed with (`v1a`), the versions spoken, and their description."""
    response["Cache-Control"] = f"public, max-age={CACHE_SECONDS}"
    published = keys.published_keys(now=timezone.now())
    return answers.PublishedKeys(
        keys=[_publish(secret) for secret in published],
        documentation=f"{settings.PUBLIC_URL}/docs",
        schemas={contract.NAME: contract.address()},
    )


def _publish(secret: Secret) -> answers.PublishedKey:
    return answers.PublishedKey(
        id=secret.key_id,
        public_key=Ed25519PrivateKey.from_text(secret.key).public_key.to_text(),
        active_from=secret.active_from,
        retire_at=secret.retire_at,
    )


def show_schema(request: HttpRequest) -> JsonResponse:
    """Show the JSON Schema of the messages that we send, as this version of the software makes them."""
    response = JsonResponse(contract.schema(), content_type="application/schema+json")
    response["Cache-Control"] = f"public, max-age={CACHE_SECONDS}"
    return response


def healthz(request: HttpRequest) -> JsonResponse:
    """Say that the process answers."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """Say whether requests can be taken: the database answers and has every table as this code knows it."""
    try:
        executor = MigrationExecutor(connection)
        is_behind = bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except Error:
        return JsonResponse({"status": "unavailable", "reason": "database_unreachable"}, status=503)
    if is_behind:
        return JsonResponse({"status": "unavailable", "reason": "migrations_pending"}, status=503)
    return JsonResponse({"status": "ready"})


def show_metrics(request: HttpRequest) -> HttpResponse:
    """Show the service's numbers to a monitoring system, which must show METRICS_TOKEN if there is one."""
    token = settings.METRICS_TOKEN
    if token and not compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
        return HttpResponse("unauthorized\n", "text/plain", 401, headers={"WWW-Authenticate": "Bearer"})
    try:
        # Who our partners are is not for everybody.
        return HttpResponse(metrics.read(with_partners=bool(token)), metrics.CONTENT_TYPE)
    except Error:
        return HttpResponse("database_unreachable\n", "text/plain", 503)
