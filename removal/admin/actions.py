"""What staff can do from a page, each in the same way: choose rows, see what will happen, say why, do it once.

An ``Action`` is offered above a list and on a row's page (``ActingAdmin.acts``); both lead to one page that shows the
effect and asks. To do it, that page is sent back with a token of its own: sent twice, it is done once. What gives away,
stops or ends something (``is_dangerous``) asks there for the password, and code, unless they were just given; a wrong
one shows the page again with all that was written.

To add one: write the step function, then an ``Action`` with ``run`` beside the admin of its rows.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.auth import authenticate
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from partners.admin import ReadOnlyAdmin, shorten
from removal import staff
from removal.config import unsent
from removal.config.site import code_field, is_proven, prove
from removal.models import Confirmation
from removal.why import Why

# So many rows at once; more is work for a command.
MOST_ROWS = 200
# A page that was answered so long ago is forgotten.
REMEMBERED = timedelta(days=7)


class Failed(Exception):
    """An action cannot be done. The message says why, to whoever asked for it; nothing has changed."""


@dataclass(frozen=True)
class Act:
    """What somebody confirmed: the rows, and what they wrote in the action's form."""

    request: HttpRequest
    user_id: int
    rows: Sequence[Any]
    said: dict[str, Any]

    @property
    def actor(self) -> str:
        return f"staff:{self.user_id}"

    @property
    def why(self) -> Why:
        """What was said in a ``WhyForm``."""
        return Why(self.said.get("reason", ""), self.said.get("ticket", ""))


@dataclass(frozen=True)
class Shown:
    """What an action has to show this once, such as a new secret. It is stored nowhere."""

    message: str
    secret: str


class ReasonForm(forms.Form):
    """A reason from a list, and words. Set ``reasons`` in a subclass."""

    reasons: Sequence[tuple[str, str]] = ()

    reason = forms.ChoiceField(widget=forms.RadioSelect)
    text = forms.CharField(
        label="In your words",
        widget=forms.Textarea(attrs={"rows": 4}),
        max_length=2000,
        help_text="For whoever reads this in five years. Name no person.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices: Any = self.fields["reason"]
        choices.choices = self.reasons


class WhyForm(forms.Form):
    """Why, as the log keeps it. Set ``reasons`` in a subclass."""

    reasons: Sequence[tuple[str, str]] = ()

    reason = forms.ChoiceField(label="Why", widget=forms.RadioSelect)
    ticket = forms.RegexField(
        r"\A[A-Za-z0-9#/_-]+\Z",
        label="Ticket",
        max_length=40,
        required=False,
        help_text="The number under which you keep the rest, such as OPS-1234. The log is kept for ever: name nobody.",
        error_messages={"invalid": "Write the number of a ticket only: letters, digits, # / _ and -."},
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices: Any = self.fields["reason"]
        choices.choices = self.reasons
        self.order_fields([name for name in self.fields if name not in {"reason", "ticket"}])


@dataclass(frozen=True)
class Action:
    """One thing that staff can do.

    ``run`` calls the step function and returns what to tell the person, or a response of its own (an export). Errors of
    the kinds in ``errors`` are shown as they are, and nothing counts as done. ``preview`` says, a line each, what will
    happen; where that depends on what is written in the form, ``effect`` says it, and the page asks once more.
    ``applies`` keeps rows away for which there is nothing to do; ``why_not`` says of such a row why. Several rows: see
    ``one_by_one``.
    """

    name: str
    label: str
    permission: str
    run: Callable[[Act], str | Shown | HttpResponseBase]
    preview: Callable[[Sequence[Any]], Sequence[str]] = lambda rows: [shorten(str(row)) for row in rows]
    effect: Callable[[Act], str] | None = None
    form: type[forms.Form] = forms.Form
    errors: tuple[type[Exception], ...] = field(default=(Failed,))
    is_dangerous: bool = False
    applies: Callable[[Any], bool] = lambda row: True
    why_not: Callable[[Any], str] = lambda row: ""
    explanation: str = ""
    leaves_page: bool = False  # the answer is a file: the page stays as it is


def one_by_one(act: Act, step: Callable[[Any], object], *, done: str, errors: tuple[type[Exception], ...] = ()) -> str:
    """Call a step for each row, each in its own transaction; says how many were ``done``, and why others were not.

    Raises Failed when none could be.
    """
    refused = []
    for row in act.rows:
        try:
            step(row)
        except errors as error:
            refused.append(str(error))
    if len(refused) == len(act.rows):
        raise Failed(" ".join(refused[:5]))
    return " ".join([f"{len(act.rows) - len(refused)} {done}.", *refused[:5]])


class ProofForm(forms.Form):
    """The password again, and the code."""

    password = forms.CharField(
        label="Your password, again",
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
        help_text="You gave it more than ten minutes ago, and this cannot be taken back.",
    )
    code = code_field()

    def __init__(self, request: HttpRequest, sent: Any = None) -> None:
        super().__init__(sent, prefix="proof")
        self.request = request
        user: Any = request.user
        if not staff.has_second_factor(user):
            del self.fields["code"]

    def clean(self) -> dict[str, Any]:
        user: Any = self.request.user
        password = self.cleaned_data.get("password", "")
        # Through the lock-out, like a login.
        if authenticate(self.request, username=user.get_username(), password=password) != user:
            raise ValidationError("The password is wrong. Nothing was done.")
        try:
            staff.check_code(user=user, code=self.cleaned_data.get("code", ""))
        except staff.WrongCode as error:
            raise ValidationError(str(error)) from error
        return self.cleaned_data


def ask_proof(request: HttpRequest, *, title: str) -> TemplateResponse | None:
    """Ask for the password, and code, unless they were just given, by the answer to this page or before."""
    if is_proven(request):
        return None
    proof = ProofForm(request, request.POST if "proof-password" in request.POST else None)
    if not proof.is_valid():
        page = {**admin.site.each_context(request), "title": title, "proof": proof}
        return TemplateResponse(request, "admin/removal/prove.html", page)
    prove(request)
    return None


def may(request: HttpRequest, action: Action) -> bool:
    return request.user.has_perm(action.permission)


def confirm(
    request: HttpRequest, action: Action, rows: Sequence[Any], *, back: str, opts: Any = None
) -> HttpResponseBase:
    """Show what an action will do and ask (GET), or do it once (POST), and go ``back``. Raises PermissionDenied."""
    if not may(request, action):
        raise PermissionDenied
    sent = request.POST if request.method == "POST" else None
    written = unsent.take(request) if sent is None else {}
    form = action.form(sent, initial=written)
    proof = ProofForm(request, sent) if action.is_dangerous and not is_proven(request) else None
    token = _token(request.POST.get("token", ""))
    if sent is not None and form.is_valid() and (proof is None or proof.is_valid()):
        if proof is not None:
            prove(request)
            proof = None
        act = Act(request, _user_id(request), rows, form.cleaned_data)
        effect = _effect(action, act)
        if effect and request.POST.get("effect") != effect:
            context = _context(request, action, rows, back=back, opts=opts)
            context |= {"form": form, "proof": None, "token": token, "effect": effect}
            return TemplateResponse(request, "admin/removal/confirm.html", context)
        answer = _do_once(request, action, act, token=token)
        if isinstance(answer, Shown):
            context = _context(request, action, rows, back=back, opts=opts) | {"shown": answer}
            return TemplateResponse(request, "admin/removal/shown.html", context)
        if answer is not None:
            return answer if isinstance(answer, HttpResponseBase) else redirect(back)
        proof, token = None, uuid.uuid4()  # not done: the page comes again, with what was written
    if proof is not None and not form.is_valid():
        proof = ProofForm(request)  # to be filled in again: the page would check it, which uses the code up
    context = _context(request, action, rows, back=back, opts=opts)
    context |= {"form": form, "proof": proof, "token": token}
    response = TemplateResponse(request, "admin/removal/confirm.html", context)
    if written:
        unsent.forget(response)
    return response


def _effect(action: Action, act: Act) -> str:
    """Say what would happen; nothing where it cannot be said, or where the action would fail and say so itself."""
    try:
        return action.effect(act) if action.effect else ""
    except action.errors:
        return ""


def _do_once(request: HttpRequest, action: Action, act: Act, *, token: uuid.UUID) -> Any:
    """Do what was confirmed under this token, unless it was done already; returns None where it failed.

    The token is written down before the work, so that of two clicks one works. It is not part of the step's
    transaction: after a crash between the two, the page says that it does not know. A file needs none: it may be taken
    from the same page as often as somebody likes.
    """
    if action.leaves_page:
        return _do(action, act)
    Confirmation.objects.filter(begun_at__lt=Now() - REMEMBERED).delete()
    _, is_first = Confirmation.objects.get_or_create(
        token=token, defaults={"user_id": act.user_id, "action": action.name}
    )
    if not is_first:
        return _done_before(request, action, token)
    answer = _do(action, act)
    if answer is None:
        Confirmation.objects.filter(token=token).delete()
        return None
    # After any other error it is not known here whether the step's transaction is in: the token stays, the log tells.
    said = answer if isinstance(answer, str) else answer.message if isinstance(answer, Shown) else ""
    Confirmation.objects.filter(token=token).update(finished_at=Now(), said=said)
    if isinstance(answer, str):
        messages.success(request, answer)
    return answer


def _do(action: Action, act: Act) -> Any:
    try:
        return action.run(act)
    except action.errors as error:
        messages.error(act.request, str(error))
        return None


def _done_before(request: HttpRequest, action: Action, token: uuid.UUID) -> str:
    earlier = Confirmation.objects.filter(token=token, user_id=_user_id(request), action=action.name).first()
    if earlier is None:
        messages.error(request, "This page was answered by somebody else. Nothing was done; begin again.")
    elif earlier.finished_at:
        messages.warning(request, f"This was sent twice and done once. {earlier.said}".strip())
    else:
        messages.warning(
            request, "This was sent twice; the first is at work, or was cut off. The log says whether it was done."
        )
    return "done before"


def _context(request: HttpRequest, action: Action, rows: Sequence[Any], *, back: str, opts: Any) -> dict[str, Any]:
    return {
        **admin.site.each_context(request),
        "title": action.label,
        "action": action,
        "lines": action.preview(rows),
        "back": back,
        "opts": opts,
    }


def _token(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        return uuid.uuid4()


def _user_id(request: HttpRequest) -> int:
    return int(request.user.pk or 0)


@dataclass(frozen=True)
class Offer:
    """A link on a row's page that leads to an action's question."""

    label: str
    url: str


class ActingAdmin(ReadOnlyAdmin):
    """A read-only page whose rows staff can do something with. Name the actions in ``acts``."""

    acts: tuple[Action, ...] = ()

    def get_actions(self, request: HttpRequest) -> Any:
        """Offer, above the list, what this person may do."""
        return {act.name: (_ask, act.name, act.label) for act in self.acts if may(request, act)}

    def get_action_choices(self, request: HttpRequest, default_choices: Any = ()) -> Any:
        return [("", "Choose what to do …"), *((act.name, act.label) for act in self.acts if may(request, act))]

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        return [path("act/<slug:act>/", self.admin_site.admin_view(self.act_view), name=name), *super().get_urls()]

    def act_view(self, request: HttpRequest, act: str) -> HttpResponseBase:
        """Ask about, and do, one action with the rows that the address names."""
        action = next((one for one in self.acts if one.name == act), None)
        if action is None or not self.has_view_permission(request) or not may(request, action):
            raise PermissionDenied
        back = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")
        wanted = [pk for pk in request.GET.get("rows", "").split(",") if pk]
        rows = self._rows(request, wanted)
        if not rows or len(rows) != len(set(wanted)):
            messages.error(request, f"Some of these rows are not there. Choose again, at most {MOST_ROWS}.")
            return redirect(back)
        not_for = [row for row in rows if not action.applies(row)]
        if not_for and request.method != "POST":
            names = ", ".join(shorten(str(row), most=40) for row in not_for[:5])
            reasons = " ".join(dict.fromkeys(filter(None, map(action.why_not, not_for[:5]))))
            messages.error(request, f"“{action.label}” does not go with {names}, as things stand. {reasons}".strip())
            return redirect(back)
        if len(rows) == 1:
            back = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[rows[0].pk])
        return confirm(request, action, rows, back=back, opts=self.opts)

    def offers(self, request: HttpRequest, row: Any) -> list[Offer]:
        """List what this person may do with a row now, for its page."""
        return [
            Offer(act.label, self.act_url(act, [row])) for act in self.acts if may(request, act) and act.applies(row)
        ]

    def act_url(self, action: Action, rows: Sequence[Any]) -> str:
        """Name the address at which an action asks about these rows."""
        url = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_act", args=[action.name])
        return f"{url}?{urlencode({'rows': ','.join(str(row.pk) for row in rows)}, safe=',')}"

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context = context | {"offers": self.offers(request, kwargs.get("obj"))}
        return super().render_change_form(request, context, *args, **kwargs)

    def _rows(self, request: HttpRequest, wanted: Sequence[str]) -> list[Any]:
        if len(wanted) > MOST_ROWS:
            return []
        try:
            keys = [self.opts.pk.to_python(pk) for pk in wanted]
        except ValidationError:
            return []
        related: Any = self.list_select_related or ()
        return list(self.get_queryset(request).select_related(*related).filter(pk__in=keys).order_by("pk"))


def _ask(model_admin: ActingAdmin, request: HttpRequest, chosen: QuerySet[Any]) -> HttpResponse | None:
    """Go from the list to the question about the chosen rows."""
    [action] = [act for act in model_admin.acts if act.name == request.POST["action"]]
    rows = list(chosen.order_by("pk")[: MOST_ROWS + 1])
    if len(rows) > MOST_ROWS:
        model_admin.message_user(request, f"Choose at most {MOST_ROWS} rows at once.", messages.WARNING)
        return None
    return redirect(model_admin.act_url(action, rows))
