"""A Flask application, for `flask run`."""

from __future__ import annotations

import flask
import giving
import handling

from hindsight_exec import drain_on_signal

if giving.has_line:
    drain_on_signal()

app = flask.Flask(__name__)
app.route("/")(handling.serve)
