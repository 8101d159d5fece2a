"""Policies and holidays are edited by those who may; a request is extended from its list."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from removal.models import DeadlinePolicy, Holiday, LogEntry, RemovalRequest, RequestExtension
from tests.factories import make_wish, record
from tests.removal.admin.conftest import act_url, carry_out
from tests.removal.admin.story import list_url, page_url

pytestmark = pytest.mark.django_db

POLICY = {
    "name": "ours", "clock": "request", "basis": "", "in_force": "on", "kinds": "opt_out,deletion",
    "jurisdictions": "xx", "partner": "", "sent_within": "", "received_within": "", "completed_within": "20 days",
    "extended_within": "", "tells_person": "on", "zone": "Europe/Paris", "calendar": "eu",
}  # fmt: skip


def test_a_policy_is_added_and_changed_with_a_log_entry(desk: Client, superuser: User) -> None:
    assert desk.post(f"{list_url(DeadlinePolicy)}add/", POLICY).status_code == 302
    policy = DeadlinePolicy.objects.get(name="ours")
    assert (policy.kinds, policy.completed_within) == (["opt_out", "deletion"], "20 days")
    assert desk.post(page_url(policy), POLICY | {"completed_within": "10 days"}).status_code == 302
    policy.refresh_from_db()
    assert policy.completed_within == "10 days"
    added, changed = LogEntry.objects.filter(action__startswith="deadlinepolicy_").order_by("id")
    assert (added.action, changed.action) == ("deadlinepolicy_added", "deadlinepolicy_changed")
    assert (changed.actor, changed.about["deadlinepolicy"]) == (f"staff:{superuser.pk}", policy.pk)
    assert "completed_within" in changed.about["fields"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("completed_within", "soon", "such as: 10 business days"),
        ("zone", "Paris", "IANA"),
        ("kinds", "nonsense", "did not validate"),
    ],
)
def test_what_means_nothing_is_not_saved(desk: Client, field: str, value: str, words: str) -> None:
    page = desk.post(f"{list_url(DeadlinePolicy)}add/", POLICY | {field: value}).content.decode()
    assert words in page
    assert not DeadlinePolicy.objects.filter(name="ours").exists()


def test_who_may_only_look_edits_nothing(viewer_desk: Client) -> None:
    policy = DeadlinePolicy.objects.get(name="gdpr")
    assert viewer_desk.get(page_url(policy)).status_code == 200
    assert viewer_desk.post(page_url(policy), POLICY).status_code == 403
    assert viewer_desk.post(f"{list_url(Holiday)}add/", {"calendar": "eu"}).status_code == 403
    assert viewer_desk.get(list_url(Holiday)).status_code == 200


def test_no_policy_is_deleted_and_a_holiday_may_be(desk: Client) -> None:
    policy, day = DeadlinePolicy.objects.get(name="gdpr"), Holiday.objects.earliest("day")
    assert desk.post(page_url(policy).replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    assert desk.post(page_url(day).replace("/change/", "/delete/"), {"post": "yes"}).status_code == 302
    assert not Holiday.objects.filter(pk=day.pk).exists()
    assert LogEntry.objects.get(action="holiday_deleted").about == {"holiday": day.pk}


def extend(desk: Client, *requests: RemovalRequest, reason: str = "Many sites.", told_at: str | None = None) -> str:
    told_at = timezone.now().strftime("%Y-%m-%d %H:%M:%S") if told_at is None else told_at
    answer = carry_out(desk, "extend", *requests, reason=reason, person_told_at=told_at)
    return (answer if answer.status_code == 200 else desk.get(list_url(RemovalRequest))).content.decode()


def ask(*, days_ago: int) -> RemovalRequest:
    return record(make_wish(f"site:{days_ago}", received_at=timezone.now() - timedelta(days=days_ago)))


def test_requests_are_extended_from_their_list(desk: Client, superuser: User) -> None:
    fresh, late = ask(days_ago=5), ask(days_ago=40)
    page = extend(desk, fresh, late)
    assert "1 extended." in page
    assert f"{late.public_id} keeps its date. Its first date is past." in page
    extension = RequestExtension.objects.get()
    assert (extension.request, extension.actor) == (fresh, f"staff:{superuser.pk}")


def test_an_extension_needs_its_reason_the_telling_and_the_permission(desk: Client, viewer_desk: Client) -> None:
    request = ask(days_ago=5)
    assert "This field is required." in extend(desk, request, reason=" ")
    page = extend(desk, request, told_at="")
    assert f"{request.public_id} keeps its date. Tell the person first" in page
    assert "Many sites." in page  # what was written stays
    assert carry_out(viewer_desk, "extend", request).status_code == 403
    assert viewer_desk.post(act_url("extend", request), {"reason": "x"}).status_code == 403
    assert not RequestExtension.objects.exists()


def test_a_policy_editor_needs_no_other_right(viewer: User, viewer_desk: Client) -> None:
    viewer.user_permissions.add(Permission.objects.get(codename="add_deadlinepolicy"))
    assert viewer_desk.post(f"{list_url(DeadlinePolicy)}add/", POLICY).status_code == 302


def test_late_requests_are_found_by_a_filter(desk: Client) -> None:
    on_track, soon, late = ask(days_ago=2), ask(days_ago=27), ask(days_ago=40)
    for word, found in (("overdue", late), ("due_soon", soon)):
        page = desk.get(f"{list_url(RemovalRequest)}?late={word}").content.decode()
        assert [one.public_id in page for one in (on_track, soon, late)] == [
            one is found for one in (on_track, soon, late)
        ]
