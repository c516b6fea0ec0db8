"""How many devices each pool of a workflow gets: fluid capacity, an exact small model, a search by simulation."""
