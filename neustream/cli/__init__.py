"""What every command shares: argument types, one-line errors, exit codes."""
