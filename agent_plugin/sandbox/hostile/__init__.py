"""Hostile programs: what the self-test and the tests run in a sandbox, and nowhere else.

Each module's text is sent as a program; the modules are never called in the process that sends them.
"""
