"""Minimise several things at once: a weighted sum of objectives.

Run it by `python examples/compose.py`.
"""

import limbeck
from limbeck import Labels, Sum
from limbeck.bench import worlds

# Published methods are frozen dataclasses; `limbeck.get` imports the one file that is asked for.
KD = limbeck.get("kd")
CRD = limbeck.get("crd")

# Each part is (name, weight, objective). The true labels come in once, by `Labels`: the methods'
# own terms on labels get the weight zero, and what has weight zero is not computed.
objective = Sum(
    (
        ("ce", 0.1, Labels()),
        ("kd", 0.9, KD(label=0, kd=1, tau=4)),
        ("crd", 0.8, CRD(label=0, crd=1)),
    )
)

result = limbeck.run(objective, worlds.make("digits(n=200)"))

# Every term is logged under its name, so that one sees what the sum is made of.
last = ", ".join(f"{name} {value:.2f}" for name, value in result.log[-1]["terms"].items())
print(f"terms of the last step: {last}; {result.facts['score']:.1%} of digits never seen are right")
