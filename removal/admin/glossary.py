"""The words of the desk, explained."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.text import slugify
from django.views.decorators.http import require_safe

GLOSSARY: dict[str, tuple[tuple[str, str], ...]] = {
    "What was asked": (
        ("Subject", "The site, blog or account that a setting is made on. Its key is the platform's own string."),
        ("Item", "One piece of a subject's content, such as a post. Its key is the platform's own, too."),
        ("Preference", "What a source says a subject allows for a usage. The newest of each source is in force."),
        ("Usage", "What content is used for, such as train-ai or search; all stands for every one."),
        (
            "Request",
            (
                "What a person or the publisher asked for: an opt-out, a deletion, a recall, an offboarding or a "
                "reinstatement."
            ),
        ),
        ("Opt-out", "Past copies are removed, and nothing goes into future releases."),
        ("Deletion", "A subject, or some of its items, are gone; partners remove their copies."),
        ("Recall", "The publisher shared something in error and wants it back from everybody."),
        ("Offboarding", "A partner's licence has ended: it removes everything it holds."),
        ("Reinstatement", "The person opted back in. Future releases may hold the content; what was removed stays so."),
        (
            "Outcome",
            (
                "How a request ended. Fulfilled: every partner says it is done. Partially fulfilled: some did less, or "
                "refused, or a person closed a notice. Nothing disclosed: nobody had received the content."
            ),
        ),
    ),
    "Who holds what": (
        ("Partner", "An organisation that receives releases, such as an AI company; the law says recipient."),
        ("Release", "One version of a dataset. Once sealed, nothing in it changes."),
        ("Manifest", "The list of what is in a release: which subjects, which items."),
        ("Disclosure", "The record that a partner received a release, and when. It is never changed. Also: handover."),
        ("Gate", "The check before a release is sealed: it keeps out whoever opted out."),
        ("Alarm", "Removed content came back among the candidates for a release. It was kept out; mend its feed."),
    ),
    "Who was told": (
        ("Stream", "Everything a partner must be told, numbered 1, 2, 3 … without holes."),
        ("Notice", "What one partner must be told about one request, under one number of its stream."),
        ("Delivery", "One message with one or more notices, and how its sending stands."),
        ("Attempt", "One try at sending a message."),
        (
            "Held",
            "The partner is paused, in onboarding or gone (410): nothing is sent. What it is owed stays so, and ages.",
        ),
        ("Not sent in time", "A notice has not reached its partner by the date that the policy gives us for that."),
        ("Quarantined", "The partner refuses the content of this one notice and takes others. A person must look."),
        ("Incident", "Something is wrong with a partner's endpoint. Its next success closes it."),
        ("Suspended", "The endpoint answered that it is gone for good (410). Set its new URL to go on."),
    ),
    "What came of it": (
        (
            "Handling",
            (
                "The partner's own word on a notice: received, in progress, completed, partly completed or rejected. "
                "It only moves forward."
            ),
        ),
        ("Acknowledgement", "A statement of a partner about its notices, kept word for word. Also: answer."),
        ("Attested", "Said by the partner about itself. Nobody here has checked it."),
        ("Respond by", "The day by which an answer is due: the platform's to the person, the partner's to us."),
        ("Overdue", "The day is past, and the answer is still owed."),
        (
            "Silent",
            "The message was delivered, and the partner did not say by the date for the receipt that it has it.",
        ),
        (
            "Closed by hand",
            "A person ended a notice, with a reason and in their own words. The partner's word stays what it was.",
        ),
        ("Waiver", "A notice is given up without the partner's word. It takes two people."),
        ("Log", "Who did what, and when. The database refuses to change or delete it."),
    ),
}


@require_safe
def glossary(request: HttpRequest) -> HttpResponse:
    """Show every word, each with an address of its own (``#notice``)."""
    chapters = [(chapter, [(word, slugify(word), text) for word, text in words]) for chapter, words in GLOSSARY.items()]
    context = {**admin.site.each_context(request), "title": "Glossary", "chapters": chapters}
    return TemplateResponse(request, "admin/removal/glossary.html", context)
