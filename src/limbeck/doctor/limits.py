"""Where good ends. Each number says why it is where it is.

"Worlds" are digits, blobs and shapes of `limbeck.bench.worlds` with kd, fitnets and crd, over
several seeds, before and after whole runs: on them nothing may be found.
"""

SAMPLES = 2000
"""Samples of a set that are asked: an accuracy is then known to about one point."""
LOOKED = 512
"""Samples for tries at other inputs, and of a served teacher, whose answers may cost money."""
GLANCE = 128
"""Samples on which a scale of the inputs must gain half of what is asked, to be tried on all."""
INSIDE = 256
"""Samples for features: CKA costs their square, and maps are large."""
PATIENCE, FEWEST = 10.0, 128
"""Seconds for a side's answers to a set (of two), and on how many samples it is asked whatever they
take: an accuracy is then known to four points."""

STEPS, LEAST = 60, 20
"""Steps of a short fit, and how few where steps are slow: tried on planted faults at 60."""
GOAL = 20.0
"""Seconds that the usual short fits may take before they have fewer steps."""
HEART = 60.0
"""Seconds that a student has to learn its samples by heart, with the fewest steps."""
KNOWN = 0.1
"""Loss of a batch at which its samples are learnt: nine of ten of each right class."""

NOISE = 2.0
"""Standard errors by which two scores must differ to count as different (one in twenty)."""

ORDER_GAIN = 0.1
"""Accuracy that a new order of classes must gain, on samples that did not choose the order: two
classes of ten that are swapped cost 0.2; a sound teacher gains nothing."""
FEED_GAIN = 0.15
"""Accuracy that other scales of the inputs must gain: seven standard errors of 512 samples."""
SURE = 0.9
"""Of a teacher above this accuracy no other inputs are tried: nothing of weight can be gained."""
CHANCE, ABOVE = 1.5, 0.1
"""A teacher below this many times the share of the most frequent class, and less than so much
above it, is at chance: twice the share is out of reach where that is one half."""

LEARNED = 0.5
"""Accuracy of a teacher on the samples that it learned from, or could have: one that is wrong on
every second of them was stopped too early, whatever the student does. The worlds' have 0.95."""

ECE_WATCH, ECE_BAD = 0.15, 0.3
"""Calibration errors: networks of papers have 0.02 to 0.15 uncalibrated, the worlds' up to 0.1;
0.3 is a teacher that is sure where it guesses. What remains after the samples' noise counts."""

FLAT_WATCH, FLAT_BAD = 0.985, 0.995
"""Entropy of softened answers over that of uniform ones: the worlds' are below 0.9 at the methods'
own temperatures. At 0.995 two logits that differ by tau / 5 are all that is left."""
SHARP_WATCH, SHARP_BAD = 0.003, 0.001
"""The same at the other end: at 0.001 all other classes of ten share 0.0003. The worlds' teachers,
on their own training sets, come down to 0.0039 at tau 1, which pld and funmatch use."""
SOFT_TAU = 4.0
"""The usual temperature, at which it is asked whether a teacher's answers hold more than labels."""
TAUS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
"""Temperatures to propose from."""
SOFT_GOAL = 0.5
"""The entropy that a proposed temperature comes nearest to: halfway between the ends."""

FAILED, POOR = 0.3, 0.5
"""Share of the teacher's way above chance that a student has come after a whole run: the worlds'
come 0.8 of it and more, and what comes less than a third has not learned the task."""
FAR = 0.15
"""How far behind its teacher a student may be that does worse than without it, and yet be no
failure."""

LESS = 0.03
"""Agreement with the teacher that a taught student may lack from the same student alone."""
APART = 0.1
"""Agreement that may lack from what two independent judges of these accuracies would reach."""
ALIKE = 0.02
"""CKA of a tap below which, after a whole run, the student does not look at what it was shown."""

BALANCE_WATCH, BALANCE_BAD = 100.0, 300.0
"""How many times smaller than the largest a term's gradient is at its best step: at 100 it turns
the step by half a degree. The worlds' methods reach 21 (kd's labels, by their small weight)."""

TOO_HIGH_WATCH, TOO_HIGH = 0.7, 0.4
"""Loss at a lower rate over that at the task's, at the end of a short fit. Lower rates look good in
short fits (no noise to average), by a fifth in the worlds."""
LEARNT = 0.1
"""A short fit that has brought its loss down by this share of the start learns at its rate, and
no rates but a tenth are tried; the worlds' slowest (shapes) brings it down by 0.18."""
WORTH = 0.25
"""Share of the start by which a higher rate must bring the loss down to be called better."""
WORTH_STUCK = 0.05
"""The same where the weights will hardly move."""
HARDLY, STUCK = 0.1, 0.01
"""How far all weights go in the whole run, at most, by their own size: a run at a usual rate goes
once their size; at a hundredth it ends where it began."""
SEVERAL = 3.0
"""How many times higher a rate is proposed that was not tried."""
USUAL = {"sgd": 0.05}
"""A rate at which most students learn, by optimiser; of others, which scale their steps, 0.001."""
HIGHEST = {"sgd": 0.5}
"""The highest rate that is proposed, by optimiser; of others 0.01."""
ALIKE_RATES = 0.1
"""Share of the loss's fall that a lower rate may lack and still be taken before a higher one."""
TOO_LOW = 2.0
"""How many times as far the loss must fall at a higher rate than it will in the whole run."""
STILL = 0.42
"""Share of the loss's fall in the second half of a run's rate-weighted steps: one half if it falls
in a straight line to the end. The worlds' have up to 0.2 with kd and fitnets and 0.38 with crd."""
UNMOVED = 0.98
"""A loss that ends above this share of where it began has not learnt."""
DIVERGED = 1.1
"""A loss that ends above this share of where it began has diverged."""
BLOWN = 100.0
"""So has one that ends at so many times its first value, where a step or two blew it up at once."""

FITS, FITS_NOT = 0.85, 0.7
"""Accuracy on up to 128 training samples that a student is asked to learn by heart: every one of
the worlds reaches 0.95; one hidden unit reaches 0.6 of four classes."""
BY_HEART = 128
"""Samples to learn by heart: two batches, few enough for a short fit, too many for chance."""
BEHIND = 0.15
"""How far a trained student may stay behind its teacher on the training set before it is asked to
learn by heart."""

TELLS = 0.05
"""Two scores that are alike say so if they could have differed by this much and no less."""

GAP_WATCH, GAP_BAD = 0.2, 0.35
"""Accuracy on train less that on held-out samples. The worlds, small on purpose, have up to 0.12
after whole runs; a gap of 0.2 means that one answer in five is a memory of its sample."""
