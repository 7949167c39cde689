"""What the report and the model card say about the prior and the class weights of a training."""

from __future__ import annotations

from edgedistill.report.blocks import one_line
from edgedistill.report.facts import Facts

MOST_CLASSES = 12  # by name


def lines(facts: Facts) -> tuple[str, ...]:
    """One line on the prior and one on the class weights, where the recipe has them."""
    prior, weights = facts.data.get("prior"), facts.recipe.get("distill", {}).get("class_weights", "none")
    texts = []
    if prior:
        named = sorted(prior["shares"].items(), key=lambda pair: -pair[1])
        shares = ", ".join(f"{one_line(name)} {share:.1%}" for name, share in named[:MOST_CLASSES])
        more = f" and {len(named) - MOST_CLASSES} more classes" if len(named) > MOST_CLASSES else ""
        source = "estimated from the labels" if prior["from"] == "labels" else "as the recipe states it"
        aim = "it" if facts.score == "top1" else "equal shares, since balanced accuracy counts"
        texts.append(f"prior, {source}: {shares}{more}; the answers are adjusted to {aim}")
        if prior["from"] != "labels" and facts.score == "top1":
            texts.append("top-1 accuracy is measured at the shares of the scored images, whatever the prior says")
    if weights == "balanced" or (weights == "auto" and facts.score == "balanced"):
        texts.append(f"class weights: {weights}; every class counts alike in the label loss")
    return tuple(texts)
