"""The shapes of the OPT family, as published with its checkpoints (Zhang et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY = 50272
MAX_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class OptShape:
    """One OPT model: `num_layers` decoder layers of width `hidden`."""

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    embed: int
    """Width of the word embedding; differs from `hidden` in opt-350m only."""
    norm_first: bool = True

    @property
    def num_parameters(self) -> int:
        """Weights and biases, embeddings included (the output layer shares the word embedding)."""
        h, f = self.hidden, self.ffn
        layer = 4 * h * (h + 1) + h * f + f + f * h + h + 4 * h
        projections = 2 * self.embed * h if self.embed != h else 0
        embeddings = VOCABULARY * self.embed + (MAX_POSITIONS + 2) * h
        return self.num_layers * layer + projections + embeddings + (2 * h if self.norm_first else 0)


def _opt(name: str, layers: int, hidden: int, heads: int) -> OptShape:
    return OptShape(name, layers, hidden, heads, 4 * hidden, hidden)


OPT_SHAPES = {
    shape.name: shape
    for shape in (
        _opt("opt-125m", 12, 768, 12),
        OptShape("opt-350m", 24, 1024, 16, 4096, 512, norm_first=False),
        _opt("opt-1.3b", 24, 2048, 32),
        _opt("opt-2.7b", 32, 2560, 32),
        _opt("opt-6.7b", 32, 4096, 32),
        _opt("opt-13b", 40, 5120, 40),
        _opt("opt-30b", 48, 7168, 56),
        _opt("opt-66b", 64, 9216, 72),
    )
}


def opt_shape(name: str) -> OptShape:
    """The shape of `opt-…` or `facebook/opt-…`. Raises ValueError, naming the known ones, for any other."""
    shape = OPT_SHAPES.get(name.removeprefix("facebook/"))
    if shape is None:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(OPT_SHAPES)}")
    return shape
