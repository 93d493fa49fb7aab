"""The version, where even the bridge can read it."""

VERSION = "0.1.0"
