"""``make mutants``: change one thing of the service at a time; a test must notice.

mutmut and cosmic-ray change a whole package and run all of its tests for each change: minutes
here, with a PostgreSQL each time. This samples at random instead, and runs what concerns the
module (``CONCERN``). A mutation stands in a copy of the service that comes first on the path.
"""
