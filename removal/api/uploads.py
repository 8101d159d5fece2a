"""Manifests come in: whole or in parts, in any of the formats of removal.formats."""

from typing import Any

from ninja import Router

from removal import formats, ledger, uploads
from removal.api import answers
from removal.api.auth import KeyRequest, PlatformKey, actor
from removal.api.platform import ReleaseName
from removal.api.streams import NDJSON, open_body
from removal.compression import Packing
from removal.formats import Digested, Format

router = Router(auth=PlatformKey(), tags=["ledger"])

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Of any length; Content-Encoding gzip or zstd is unpacked. NDJSON: a line of at most 64 MiB a "
        "subject. CSV: a row an item below the header `subject,item`. XML: a WordPress export, of which what is public "
        "is taken. Parquet, where it is installed: `subject: string` and `items: list<string>`, or `item: string`.",
        "content": {
            NDJSON: {"schema": {"$ref": "#/components/schemas/ManifestLine"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/xml": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.put("/releases/{name}/manifest", response=answers.ManifestCounts, openapi_extra=BODY)
def replace_manifest(request: KeyRequest, name: ReleaseName) -> ledger.Counts:
    """Say whose content is in a release, in place of what was said before, parts too. Taken whole, or not at all."""
    form = _format(request)
    return uploads.replace_manifest(
        actor=actor(request),
        name=name,
        entries=formats.read_manifest(open_body(request), form=form, packing=_packing(request)),
        one_line_each=form.one_line_each,
    )


@router.put("/releases/{name}/manifest/parts/{int:number}", response=answers.ManifestPart, openapi_extra=BODY)
def put_manifest_part(request: KeyRequest, name: ReleaseName, number: int) -> uploads.Part:
    """Send a large manifest in parts, numbered from 1, in any order and several at once. Each is taken whole.

    The same bytes again change nothing; other bytes take the place of the part. A subject stands in one part. Seal with
    `{"parts": n}`, which names what is missing.
    """
    form = _format(request)
    body = Digested(open_body(request))
    return uploads.put_part(
        actor=actor(request),
        name=name,
        number=number,
        entries=formats.read_manifest(body, form=form, packing=_packing(request)),
        digest=body.digest,
        one_line_each=form.one_line_each,
    )


def _format(request: KeyRequest) -> Format:
    return formats.format_of_media_type(request.content_type or "")


def _packing(request: KeyRequest) -> Packing:
    return formats.packing_of_encoding(request.headers.get("Content-Encoding", ""))
