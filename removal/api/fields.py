"""The kinds of fields that the API takes and gives: what may stand in one, and what is said if it may not."""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from removal import statements
from removal.manifests import check_key, check_text
from removal.models import RemovalRequest
from removal.models.ledger import NAME_PATTERN
from removal.models.subjects import USAGES

MAX_ITEMS = 100_000  # of one request
MAX_NUMBER = 2**63 - 1  # PostgreSQL's bigint


def one_of(words: Collection[str]) -> Callable[[str], str]:
    def check(word: str) -> str:
        if word not in words:
            raise ValueError(f"Write one of: {', '.join(words)}.")
        return word

    return check


def enum(words: Collection[str]) -> Any:
    return Field(json_schema_extra={"enum": list(words)})


TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _read_time(value: object) -> datetime:
    """Read RFC 3339 with its offset; pydantic alone would take numbers too."""
    fault = "Write a time with its offset, such as 2026-11-24T00:20:00Z."
    if not (isinstance(value, str) and TIME_PATTERN.fullmatch(value)):
        raise ValueError(fault)
    try:
        time = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(fault) from error
    if time.year < 1970:
        raise ValueError("It lies before 1970, which must be a mistake.")
    return time


Time = Annotated[datetime, BeforeValidator(_read_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Key = Annotated[str, AfterValidator(check_key), Field(description="1 to 512 bytes in UTF-8.")]
# The length comes first: pydantic puts it into words, and into the description, only for what is still a plain string.
Word = Annotated[str, Field(max_length=40), AfterValidator(check_text)]
Label = Annotated[str, Field(max_length=200), AfterValidator(check_text)]
Prose = Annotated[str, Field(max_length=4000), AfterValidator(check_text)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Epoch = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Usage = Annotated[str, AfterValidator(one_of(USAGES)), enum(USAGES)]
Reason = Annotated[str, AfterValidator(one_of(RemovalRequest.Reason.values)), enum(RemovalRequest.Reason.values)]
Outcome = Annotated[str, AfterValidator(one_of(statements.OUTCOMES)), enum(statements.OUTCOMES)]
Claim = Annotated[str, AfterValidator(one_of(statements.CLAIMS)), enum(statements.CLAIMS)]
State = Literal["received", "planned", "closed"]

SLUG_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
PUBLIC_ID_PATTERN = r"^[0-9A-HJKMNP-TV-Z]{26}$"
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
IdempotencyKey = Annotated[
    str, Field(pattern=IDEMPOTENCY_KEY_PATTERN, description="1 to 255 visible ASCII characters.")
]


def _no_repeats(words: list[str]) -> list[str]:
    if len(set(words)) < len(words):
        raise ValueError("Name each one once.")
    return words


Usages = Annotated[list[Usage], Field(min_length=1, max_length=len(USAGES)), AfterValidator(_no_repeats)]
