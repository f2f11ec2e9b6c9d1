"""Where a server listens."""

from __future__ import annotations

import pytest

from steerlm.errors import ConfigError
from steerlm.server.run import listen


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", 99999, "--port 99999: must be from 0"),
        ("127.0.0.1", 65536, "--port 65536: must be from 0"),
        ("127.0.0.1", -1, "--port -1: must be from 0"),
        ("a" * 80 + ".com", 0, "choose another --host"),
        ("a..b", 0, "choose another --host"),
    ],
)
def test_where_nobody_can_listen(host: str, port: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        listen(host, port).close()


def test_a_port_that_is_free() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
