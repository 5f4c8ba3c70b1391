"""A page to try models on, and an API that gives programs the same scores: ``mvad serve``.

::

    GET  /             the page: drop images on it, see verdict, p-value and anomaly map
    GET  /categories   the categories that images can be scored as, and the limits of an upload
    POST /score        the API: a form with image files in, JSON out
"""
