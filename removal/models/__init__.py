"""The tables, one file a noun. Read them in this order: subjects, ledger, requests, streams, evidence."""

from removal.models.evidence import Acknowledgement, AcknowledgementText, LogEntry
from removal.models.ledger import Dataset, Disclosure, ManifestEntry, PlannedDisclosure, Release
from removal.models.requests import RemovalRequest, RequestTarget
from removal.models.streams import Attempt, Delivery, DeliveryBody, Incident, Notice, Stream
from removal.models.subjects import Preference, Subject

__all__ = [
    "Acknowledgement",
    "AcknowledgementText",
    "Attempt",
    "Dataset",
    "Delivery",
    "DeliveryBody",
    "Disclosure",
    "Incident",
    "LogEntry",
    "ManifestEntry",
    "Notice",
    "PlannedDisclosure",
    "Preference",
    "Release",
    "RemovalRequest",
    "RequestTarget",
    "Stream",
    "Subject",
]
