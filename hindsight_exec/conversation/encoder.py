"""JSON as it is stored and sent: any character as it is, and no NaN."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)


def _make() -> Callable[[Any], str]:
    """Return what makes JSON of a value, without making an encoder for each call.

    `JSONEncoder.encode` keeps the options only, and makes its encoder in C anew
    each time: that was a tenth of what a put costs. Where the standard library
    has none of this kind, `encode` it is.
    """
    try:
        parts_of = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            *(None, _encoder.default, json.encoder.encode_basestring, None),
            *(_encoder.key_separator, _encoder.item_separator, False, False, False),
        )
        parts_of("", 0)
    except (AttributeError, TypeError):
        return _encoder.encode
    return lambda value: "".join(parts_of(value, 0))


#: Return the JSON of a value; raises TypeError, ValueError or RecursionError
#: for what has none.
to_json = _make()
