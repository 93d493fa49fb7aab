"""The real daemon, whose MCP door serves the conformance registry. Usage: python -m tests.conformance.fixture_daemon serve

Its lock, log, sockets, first line, limits and transport are ours; only what is behind them is not.
"""

import sys
from functools import partial

from daemon import cli, mcp_server
from tests.conformance import registry

if __name__ == "__main__":
    mcp_server.serve = partial(mcp_server.serve, server=registry.server())
    sys.exit(cli.main(sys.argv[1:]))
