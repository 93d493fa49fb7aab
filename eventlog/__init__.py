"""What happened: facts, the log that keeps them, and the views rebuilt from it.

Reads top down: values, events, framing, log, jobs, index.
"""
