"""Tools that workflow nodes call."""
