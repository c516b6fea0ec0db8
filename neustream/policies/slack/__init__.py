"""slack: start only what, by the forecast, leaves everything under way in time. docs/slack.md explains the rules."""
