"""The application for Ray Serve's own command line; settings as arguments, or in the environment.

serve run serve_app:app run=d34
NANORAY_RUN=d34 serve run serve_app:app
"""

from nanoray.ops.launch_arguments import application as app

__all__ = ["app"]
