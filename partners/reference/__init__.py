"""A small partner, to read and to test with: it receives removal notices, removes, and says what it did.

    REFERENCE_SECRET=whsec_… REFERENCE_API_KEY=… python -m partners.reference \\
        --slug acme --service-url https://removal.example --database acme.sqlite3

It needs the standard library and ``partners.signing``. Read it the way of a message: ``receiver`` (HTTP) → ``partner``
(believe it or not, write it down) → ``notices`` (what it says) → ``work`` (remove, and write down what to answer) →
``errands`` (post the answers, fetch long lists). Beside them are ``client`` (the service, as we call it), ``holdings``
(what this partner has) and ``store`` (its tables); ``__main__`` puts them together.

What every receiver has to get right:

1. Nothing is believed before the signature over the raw bytes is verified, and nothing that names another partner.
2. Messages come twice, late and out of order. A notice is known by its epoch and sequence, not by its message, and
   only once its own work is committed.
3. The answer to a message follows the commit, never the other way round.
4. What we have to say is written in the transaction of the work, and posted from there until the service has it.
"""
