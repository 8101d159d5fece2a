"""The tables, one file a noun. Read them in this order: subjects, ledger, requests, streams, evidence, closings,
extensions, deadlines, the rest.
"""

from removal.models.closings import Closing, Waiver
from removal.models.confirmations import Confirmation
from removal.models.deadlines import DeadlinePolicy, Escalation, Holiday, RequestExtension, StaffMessage
from removal.models.evidence import Acknowledgement, AcknowledgementText, LogEntry, SignedAnswer, SignedAnswerBody
from removal.models.exports import Export
from removal.models.extensions import Extension
from removal.models.heartbeats import Heartbeat
from removal.models.ledger import Alarm, Dataset, Disclosure, ManifestEntry, ManifestPart, PlannedDisclosure, Release
from removal.models.requests import MatchedPiece, RemovalRequest, RequestTarget
from removal.models.streams import Attempt, Delivery, DeliveryBody, Incident, Notice, Stream
from removal.models.subjects import Preference, Subject

__all__ = [
    "Acknowledgement",
    "AcknowledgementText",
    "Alarm",
    "Attempt",
    "Closing",
    "Confirmation",
    "Dataset",
    "DeadlinePolicy",
    "Delivery",
    "DeliveryBody",
    "Disclosure",
    "Escalation",
    "Export",
    "Extension",
    "Heartbeat",
    "Holiday",
    "Incident",
    "LogEntry",
    "ManifestEntry",
    "ManifestPart",
    "MatchedPiece",
    "Notice",
    "PlannedDisclosure",
    "Preference",
    "Release",
    "RemovalRequest",
    "RequestExtension",
    "RequestTarget",
    "SignedAnswer",
    "SignedAnswerBody",
    "StaffMessage",
    "Stream",
    "Subject",
    "Waiver",
]
