"""What people call a subject: its address, its title. For staff to find it by; a person's data, so erasable.

A label is in no message, export, log or metric, and nothing is decided by it.
"""

from collections.abc import Mapping, Sequence

from django.db import connection

from removal.models import LogEntry, RemovalRequest, RequestTarget, Subject
from removal.preferences import UnknownSubject
from removal.transactions import whole_step

MOST_CHARACTERS = 500
# A search goes on with so many subjects at most: "https://" may be the beginning of them all.
MOST_NAMED = 100

# In the order of ids, as everyone locks subjects.
LOCK = "select from removal_subject where key = any(%(keys)s) order by id for no key update"
SET = """
update removal_subject s set label = x.label
  from unnest(%(keys)s::text[], %(labels)s::text[]) x(key, label)
 where s.key = x.key and s.label is distinct from x.label
"""
# The key, or a label that is this or begins so, whatever the size of its letters: two indexes.
NAMED = r"""
(select id, key, label, 0 as rank from removal_subject where key = %(term)s)
union all
(select id, key, label, 1
   from removal_subject
  where label <> '' and lower(label) collate "C" like lower(%(beginning)s) collate "C" || '%%' and key <> %(term)s
  order by lower(label) collate "C", id limit %(most)s)
order by 4, 1
"""


@whole_step
def set_label(*, actor: str, subject: str, label: str | None) -> None:
    """Give a subject a label in place of any before; None erases it. Raises UnknownSubject."""
    row = Subject.objects.select_for_update(no_key=True).filter(key=subject).first()
    if row is None:
        raise UnknownSubject(subject)
    if row.label != (label or ""):
        Subject.objects.filter(pk=row.pk).update(label=label or "")
        LogEntry.objects.create(actor=actor, action="label_set" if label else "label_erased", about={"subject": row.pk})


@whole_step
def set_labels(*, actor: str, labels: Mapping[str, str | None]) -> int:
    """Give many subjects their labels in one transaction, by key; None erases. Returns how many were changed.

    Keys that no subject has are left out: a label alone makes no subject.
    """
    named = {"keys": list(labels), "labels": [label or "" for label in labels.values()]}
    with connection.cursor() as cursor:
        cursor.execute(LOCK, {"keys": named["keys"]})
        cursor.execute(SET, named)
        changed = int(cursor.rowcount)
    if changed:
        LogEntry.objects.create(actor=actor, action="labels_set", about={"subjects": changed})
    return changed


def subjects_named(term: str, *, most: int = MOST_NAMED) -> Sequence[Subject]:
    """Find the subject with this key, then those whose label is this or begins so, ``most`` of them at most."""
    if not term.strip() or "\0" in term:
        return []
    beginning = term.strip().replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return list(Subject.objects.raw(NAMED, {"term": term, "beginning": beginning, "most": most}))


def requests_named(term: str) -> list[int]:
    """Find the requests with this id, or about a subject that this names: see ``subjects_named``. Returns their ids."""
    if "\0" in term:
        return []
    found = RemovalRequest.objects.filter(public_id=term.strip().upper()).values_list("pk", flat=True)
    named = [subject.pk for subject in subjects_named(term)]
    about = RequestTarget.objects.filter(subject_id__in=named).values_list("request_id", flat=True)
    return sorted({*found, *about})


def subjects_meant(term: str) -> Sequence[Subject]:
    """Find the subjects that somebody means by a key, a label, its beginning, or a request's id: MOST_NAMED at most.

    A subject whose key is exactly this is the only one that is meant.
    """
    named = subjects_named(term)
    if named and named[0].key == term:
        return named[:1]
    if named:
        return named
    of_request = RequestTarget.objects.filter(request__public_id=term.strip().upper()).select_related("subject")
    return [target.subject for target in of_request.order_by("subject_id")[:MOST_NAMED]] if "\0" not in term else []
