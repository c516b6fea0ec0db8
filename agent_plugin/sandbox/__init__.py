"""Runs programs that nobody vouches for: single-use interpreters behind a ladder of walls that fails closed.

`Sandbox().run(code)` gives a `ToolResult`. `python -m agent_plugin.sandbox` says what holds on this machine.
Interpreters import parts of this package inside the walls, so it imports nothing here.
"""
