from django.contrib.admin.apps import AdminConfig


class DeskConfig(AdminConfig):
    """The admin with our login and our pages. Not in removal/apps.py: Django could not tell which app to take."""

    default_site = "removal.config.site.Desk"
