"""Draws `docs/pictures/seam.png` from `results/gpu.json`: the seam of a cut run, ours and the paper's.

python -m benchmarks.seam_picture
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu.json"
INK, OURS, PAPER = "#444444", "#1b7f5c", "#c2452d"


def main() -> None:
    """Write the picture."""
    seam = json.loads(RESULTS.read_text())["items"]["seam"]
    cut, replay = seam["cut_after_step"], seam["replay_r"]
    figure, (held_out, order) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, colour, label, style in (
        ("paper", PAPER, "adapter only (the paper's way)", "-"),
        ("unbroken", INK, "never cut", "-"),
        ("ours", OURS, "Trainhop, cut here", (0, (4, 3))),
    ):
        steps, losses = zip(*seam[name]["eval_loss"], strict=True)
        held_out.plot(steps, losses, color=colour, linestyle=style, label=label, linewidth=2)
    held_out.axvline(cut, color=INK, linewidth=0.8)
    held_out.set(title="Held-out loss", xlabel="step", ylabel="loss per token")
    held_out.legend(frameon=False)
    for name, colour in (("paper", PAPER), ("ours", OURS)):
        losses = seam[name]["loss"]
        label = f"{'adapter only' if name == 'paper' else 'Trainhop'}: r = {replay[name]:.2f}"
        order.scatter(losses[:cut], losses[cut : 2 * cut], s=9, color=colour, label=label)
    order.set(
        title="Is the first session's order replayed?", xlabel="loss at step n", ylabel="loss at step n after the cut"
    )
    order.legend(frameon=False)
    for axes in (held_out, order):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{seam['model']}, {2 * cut} steps, cut after step {cut}", color=INK)
    figure.savefig(HERE.parent / "docs" / "pictures" / "seam.png", dpi=110)


if __name__ == "__main__":
    main()
