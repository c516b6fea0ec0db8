"""slack: start only what leaves every promise kept. docs/slack.md explains the rules."""
