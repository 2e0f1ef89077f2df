"""Teach a small network to read digits: three lines of limbeck.

Run it by `python examples/quickstart.py`.
"""

import limbeck
from limbeck.bench import worlds

# A world is a ready-made task: here scikit-learn's handwritten digits, 200 of them with labels, a
# trained teacher and a student a hundred times smaller. The first time, the teacher is trained.
task = worlds.make("digits(n=200)")
alone = limbeck.run(limbeck.Labels(), task)  # cross-entropy on the labels, nobody teaches
taught = limbeck.run("kd", task)  # the same student, the same steps, and the teacher

# `taught.model` is the student, a torch module; `facts` is what a run's result.json says.
print(
    f"of digits never seen, the teacher knows {taught.facts['teacher']:.1%}; a student with "
    f"{taught.facts['parameters']} parameters knows {alone.facts['score']:.1%} when it learns "
    f"alone, {taught.facts['score']:.1%} when it is taught"
)
