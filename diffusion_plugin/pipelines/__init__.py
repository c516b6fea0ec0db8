"""The pipelines, each a handful of modules on diffusers' own networks."""
