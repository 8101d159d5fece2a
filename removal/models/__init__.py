"""The tables, one file a noun. In this order: subjects, ledger, requests, streams, evidence, closings, the rest."""

from removal.models.closings import Closing, Waiver
from removal.models.confirmations import Confirmation
from removal.models.evidence import Acknowledgement, AcknowledgementText, LogEntry
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
    "Delivery",
    "DeliveryBody",
    "Disclosure",
    "Heartbeat",
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
    "RequestTarget",
    "Stream",
    "Subject",
    "Waiver",
]
