"""The three addresses that monitors ask, and that answer whatever the Host header says.

A probe comes from inside, past the proxy, and names the machine by its address, which is not in ALLOWED_HOSTS. These
answers hold no link and know no session, so that a false host can do nothing in them.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase
from django.urls import resolve

PATHS = ("/healthz", "/readyz", "/metrics")


def answer_at_any_host(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: answer probes before anything looks at the Host header, and nothing else."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        if request.path_info not in PATHS:
            return get_response(request)
        response: HttpResponseBase = resolve(request.path_info).func(request)
        return response

    return answer
