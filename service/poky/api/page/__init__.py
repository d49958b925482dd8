"""The admin listener's page: what an instance sees, for people. It changes nothing.

``overview`` is the first page, ``troubles`` what is wrong and what to do, ``objects`` a bucket and
an object, ``fleet`` what Prometheus knows of all hosts, ``layout`` what all pages share, ``plots``
the last hour.
"""

from poky.api.page.objects import get_bucket_page, get_object_page
from poky.api.page.overview import get_overview

__all__ = ["get_bucket_page", "get_object_page", "get_overview"]
