"""``manage.py demo``: the whole story on one machine, with real processes and nothing to install."""
