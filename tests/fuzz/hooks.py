"""What schemathesis cannot know: NDJSON. Bodies are lines, and each line of an answer is as described."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema_rs
import schemathesis

NDJSON = "application/x-ndjson"


@schemathesis.serializer(NDJSON)
def write_lines(_: Any, value: Any) -> bytes:
    """Send what was made for one line as that line, and what is not JSON as it is."""
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"


@schemathesis.check
def lines_are_as_described(_: Any, response: Any, case: Any) -> None:
    """Check each line of an NDJSON answer against the schema of one."""
    described = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("content", {})
    sent_as = response.headers.get("content-type", [""])[0].split(";")[0]
    if sent_as != NDJSON or NDJSON not in described:
        return  # any other content type is for the usual checks
    validator = _validator(json.dumps(described[NDJSON]["schema"]), _Components(case.operation.schema.raw_schema))
    for number, line in enumerate(response.content.splitlines(), start=1):
        fault = next(validator.iter_errors(json.loads(line)), None)
        if fault is not None:
            raise AssertionError(f"Line {number} of the answer is not as described: {fault.message}")


class _Components:
    """The described components, hashed by their identity: there is one description in a run."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.schemas = description["components"]

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Components)


@cache
def _validator(schema: str, components: _Components) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**json.loads(schema), "components": components.schemas})
