"""What we do: the daemon, its doors and the command line. Read `supervisor.py` first."""
