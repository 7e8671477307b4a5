"""Which session a turn and a recall belong to."""

from __future__ import annotations

import gc

from hindsight_exec.hermes.identity import Identity
from hindsight_exec.hermes.sessions import Sessions


def test_sessions_that_were_left_are_forgotten():
    """A provider that lives long keeps the identities of a few sessions, not of all."""
    sessions = Sessions()
    for number in range(200):
        sessions.switch(f"s{number}", "", rewound=False)
    gc.collect()
    count = sum(isinstance(one, Identity) for one in gc.get_objects())
    for number in range(1000):
        sessions.switch(f"t{number}", "", rewound=False)
    gc.collect()
    assert sum(isinstance(one, Identity) for one in gc.get_objects()) <= count


def test_a_session_that_is_come_back_to():
    """A session that the user comes back to is a new scope, and keeps its parent."""
    sessions = Sessions()
    sessions.begin(Identity.of("a", {"parent_session_id": "p"}))
    first = sessions.scope("a")
    sessions.switch("b", "a", rewound=False)
    assert sessions.scope("a") is None
    assert sessions.identity_of("a").parent == "p"
    sessions.switch("a", "p", rewound=False)
    assert sessions.scope("a") not in (None, first)
