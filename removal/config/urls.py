from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("removal.api.urls"))]

handler400 = "removal.api.problems.bad_request"
handler404 = "removal.api.problems.page_not_found"
handler500 = "removal.api.problems.server_error"
