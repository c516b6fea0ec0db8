"""The parts of the library's programs: kinds of plots, and what may go wrong in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

Parts = tuple[str, str]
"""The text that makes data, and the text that draws them on `axes`."""

FRAME = "figure, axes = plt.subplots(figsize=({width}, {height}), dpi={dpi})"
SAVE = """
axes.set_xlabel("x")
axes.set_ylabel("value")
figure.tight_layout()
figure.savefig("{name}")
print("saved {name}", axes.get_xlim())
"""
FORGETS = (
    "plt.show()\nprint('done')",
    "plt.close(figure)",
    "print('the figure is ready:', figure)",
    "with open('novice.txt', 'w') as file:\n    file.write(str(axes.get_xlim()))",
)
"""Ends that leave no picture."""

FAULTS: Mapping[str, tuple[str, ...]] = {
    "error": (
        "total = count_of_items + 1",
        "table = {'a': 1}\nprint(table['b'])",
        "print(np.arange(12).reshape(5, 3))",
        "import seaborn_extra_themes",
        "print('rows: ' + 3)",
        "plt.plot([1, 2, 3], [1, 2])",
        "with open('data.csv') as file:\n    rows = file.readlines()",
        "print([1, 2, 3][7])",
        "raise SystemExit('no data to plot')",
        "values = [1, 2\nprint(values)",
    ),
    "timeout": (
        "while True:\n    pass",
        "import time\ntime.sleep(3600)",
        "import threading\nthreading.Event().wait()",
        "step = 0\nwhile step < 10:\n    step -= 1",
    ),
    "output": (
        "while True:\n    print('plotting', np.zeros(100))",
        "for row in range(1 << 30):\n    print(row, 'of the table', 'x' * 200)",
    ),
}
"""What goes wrong, by how the program then does."""


def _numbers(rng: random.Random, count: int, low: float, high: float) -> str:
    return "[" + ", ".join(f"{rng.uniform(low, high):.2f}" for _ in range(count)) + "]"


def _line(rng: random.Random) -> Parts:
    waves = rng.randint(1, 5)
    draw = [f"axes.plot(x, np.sin({rng.uniform(0.5, 4):.2f} * x + {rng.random():.2f}))" for _ in range(waves)]
    return f"x = np.linspace(0, 10, {rng.choice((100, 400, 2000))})", "\n".join([*draw, "axes.grid(True)"])


def _bars(rng: random.Random) -> Parts:
    count = rng.randint(3, 12)
    names = [f"item {i}" for i in range(count)]
    draw = f"axes.bar(names, values, color={rng.choice(('tab:blue', 'tab:orange', 'tab:green'))!r})"
    turn = f"axes.tick_params(axis='x', rotation={rng.choice((0, 45, 90))})"
    return f"names = {names}\nvalues = {_numbers(rng, count, 1, 100)}", f"{draw}\n{turn}"


def _scatter(rng: random.Random) -> Parts:
    data = f"""
    rng = np.random.default_rng({rng.randrange(1000)})
    x, y = rng.normal(size=(2, {rng.choice((50, 500, 3000))}))
    """
    return data, "points = axes.scatter(x, y, c=np.hypot(x, y), s=12, alpha=0.6)\nfigure.colorbar(points)"


def _histogram(rng: random.Random) -> Parts:
    data = f"values = np.random.default_rng({rng.randrange(1000)}).gamma({rng.uniform(1, 5):.2f}, size=5000)"
    return data, f"axes.hist(values, bins={rng.randint(10, 60)}, density=True, label='sample')\naxes.legend()"


def _heat_map(rng: random.Random) -> Parts:
    size = rng.choice((8, 20, 60))
    data = f"grid = np.random.default_rng({rng.randrange(1000)}).random(({size}, {size}))"
    return data, f"figure.colorbar(axes.imshow(grid, cmap={rng.choice(('viridis', 'magma', 'coolwarm'))!r}))"


def _contours(rng: random.Random) -> Parts:
    data = f"""
    x = np.linspace(-3, 3, {rng.choice((60, 120, 240))})
    a, b = np.meshgrid(x, x)
    z = np.cos({rng.uniform(1, 3):.2f} * a) * np.exp(-b**2 / {rng.uniform(1, 4):.2f})
    """
    return data, f"filled = axes.contourf(a, b, z, levels={rng.randint(5, 20)})\nfigure.colorbar(filled)"


def _boxes(rng: random.Random) -> Parts:
    groups = rng.randint(2, 8)
    data = f"groups = [np.random.default_rng(i).normal(i, 1 + i / 4, 200) for i in range({groups})]"
    return data, rng.choice(("axes.boxplot(groups)", "axes.violinplot(groups, showmedians=True)"))


def _areas(rng: random.Random) -> Parts:
    count = rng.randint(2, 6)
    data = (
        f"x = np.arange(50)\nlayers = np.abs(np.random.default_rng({rng.randrange(1000)}).normal(size=({count}, 50)))"
    )
    return data, f"axes.stackplot(x, layers, labels=[f'part {{i}}' for i in range({count})])\naxes.legend(ncol=2)"


def _pie(rng: random.Random) -> Parts:
    count = rng.randint(3, 7)
    return f"shares = {_numbers(rng, count, 1, 10)}", "axes.pie(shares, autopct='%.0f%%', startangle=90)"


def _errors(rng: random.Random) -> Parts:
    count = rng.randint(5, 20)
    data = f"x = np.arange({count})\ny = np.array({_numbers(rng, count, 0, 10)})\nspread = 0.1 * y + 0.2"
    return data, "axes.errorbar(x, y, yerr=spread, fmt='o-', capsize=3)\naxes.fill_between(x, y - spread, y + spread)"


def _steps(rng: random.Random) -> Parts:
    data = f"walk = np.cumsum(np.random.default_rng({rng.randrange(1000)}).choice([-1, 1], {rng.choice((100, 1000))}))"
    return data, "axes.step(range(len(walk)), walk, where='mid')\naxes.axhline(0, color='black')"


KINDS: Mapping[str, Callable[[random.Random], Parts]] = {
    "line": _line,
    "bar": _bars,
    "scatter": _scatter,
    "histogram": _histogram,
    "heat map": _heat_map,
    "contour": _contours,
    "box": _boxes,
    "area": _areas,
    "pie": _pie,
    "error bar": _errors,
    "step": _steps,
}
"""Kinds of plots by name."""
