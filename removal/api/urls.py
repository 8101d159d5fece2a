"""The public API, put together: its addresses, its errors, its description (OpenAPI 3.1)."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from csp.decorators import csp_update
from django.http import Http404, HttpRequest, HttpResponseBase
from django.urls import URLPattern, URLResolver, path
from ninja import NinjaAPI, Swagger
from ninja.errors import HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation
from ninja.parser import Parser
from pydantic.json_schema import models_json_schema

from removal.api import (
    answers,
    contract,
    gate,
    identifiers,
    labels,
    own,
    partner,
    platform,
    preferences,
    problems,
    questions,
    recalls,
    schemas,
    stream,
    uploads,
    wellknown,
)
from removal.manifests import read_json

REF = "#/components/schemas/{model}"
# What ninja does not see in the views: lines of streams, and errors.
UNSEEN = (
    schemas.BulkRequest,
    answers.BulkAnswer,
    answers.BodyEnd,
    schemas.RecallLine,
    schemas.PreferenceLine,
    answers.PreferenceAnswer,
    schemas.CandidateLine,
    answers.GateAnswer,
    schemas.ManifestLine,
    schemas.AcknowledgementLine,
    schemas.ExtensionLine,
    answers.ProblemDetails,
)


class StrictParser(Parser):
    """JSON that two readers would understand in the same way, or none."""

    def parse_body(self, request: HttpRequest) -> Any:
        return read_json(request.body)


def _with_problems(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    @wraps(view)
    def wrapped(*args: Any, **kwargs: Any) -> HttpResponseBase:
        return problems.refuse_method(view(*args, **kwargs))

    return wrapped


class Api(NinjaAPI):
    @property
    def urls(self) -> tuple[list[URLResolver | URLPattern], str, str]:
        """The addresses, as ninja has them, but that a wrong method too is answered with a problem."""
        patterns, app_name, namespace = super().urls
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = _with_problems(pattern.callback)
        return patterns, app_name, namespace

    def get_openapi_operation_id(self, operation: Operation) -> str:
        return operation.view_func.__name__

    def get_openapi_schema(self, **kwargs: Any) -> OpenAPISchema:
        """Describe the API, with what ninja cannot see: stream bodies, problems, and the messages that we send."""
        described = super().get_openapi_schema(**kwargs)
        components = described["components"]["schemas"]
        _, by_reference = models_json_schema([(model, "validation") for model in UNSEEN], ref_template=REF)
        components |= by_reference["$defs"]
        components |= contract.definitions(ref_template=REF)
        described["webhooks"] = contract.webhooks(ref_template=REF)
        # Said by the web server before we see the request, and in its own form.
        unseen = {
            "414": {"description": "The address with its parameters is too long for the web server (4 KB)."},
            "431": {"description": "The headers are too many, or too long, for the web server."},
        }
        problem = {"schema": {"$ref": REF.format(model="ProblemDetails")}}
        for operations in described["paths"].values():
            for operation in operations.values():
                operation["responses"] |= unseen | {
                    "default": {"description": "An error", "content": {problems.CONTENT_TYPE: problem}}
                }
        return described


api = Api(
    title="Removal",
    version="1",
    description="Tells every partner who already holds a person's content that it must go, and proves it.",
    openapi_url="/openapi.json",
    docs_url="/docs",
    docs=Swagger(settings={"validatorUrl": None}),  # or the page would have a stranger check it
    docs_decorator=csp_update({"img-src": ["data:"]}),  # its arrows and icons are pictures in its style sheet
    parser=StrictParser(),
)
for _kind in (Exception, Http404, HttpError, ValidationError):  # ninja has answers of its own to the last three
    api.add_exception_handler(_kind, problems.answer)
api.add_router("/v1", platform.router)
api.add_router("/v1", uploads.router)
api.add_router("/v1", recalls.router)
api.add_router("/v1", questions.router)
api.add_router("/v1", preferences.router)
api.add_router("/v1", labels.router)
api.add_router("/v1", gate.router)
api.add_router("/v1", partner.router)
api.add_router("/v1", stream.router)
api.add_router("/v1", identifiers.router)
api.add_router("/v1", own.router)
api.add_router("", wellknown.router)

urlpatterns = [
    path("", api.urls),
    path(f"schemas/{contract.NAME}.json", wellknown.show_schema),
    path("healthz", wellknown.healthz),
    path("readyz", wellknown.readyz),
    path("metrics", wellknown.show_metrics),
]
