"""A Flask application, for `flask run`."""

from __future__ import annotations

import flask
import handling

app = flask.Flask(__name__)
app.route("/")(handling.serve)
