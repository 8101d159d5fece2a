"""What people call a subject, so that staff can find it."""

from typing import Annotated

from ninja import Path, Router, Status

from removal import labels
from removal.api import fields, schemas
from removal.api.auth import KeyRequest, PlatformKey, actor

router = Router(auth=PlatformKey())


@router.put("/subjects/{path:subject}/label", tags=["subjects"], response={204: None})
def set_label(request: KeyRequest, subject: Annotated[fields.Key, Path()], body: schemas.NewLabel) -> Status[None]:
    """Give a subject a label, such as its address or title; null erases it. Staff find its requests by it.

    It is sent to no partner, and stands in no export, log or metric. The subject must be known: by a release, a request
    or a preference.
    """
    labels.set_label(actor=actor(request), subject=subject, label=body.label)
    return Status(204, None)
