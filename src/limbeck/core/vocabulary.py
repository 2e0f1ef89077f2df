"""The closed vocabularies of cards. A word that is missing is added here, with its meaning."""

__all__ = ["ENTRIES", "GIVES", "KINDS", "PLAIN_NEEDS"]

KINDS: dict[str, str] = {
    # what is matched
    "response": "outputs: logits, probabilities, soft labels, predicted values",
    "feature": "hidden activations, as they are or through a projector",
    "attention": "attention maps and other maps of where a model looks",
    "relation": "distances, angles, kernels or graphs between samples or parts",
    "contrast": "positives against negatives, as in InfoNCE",
    "ranking": "orders, lists and margins of candidates",
    "preference": "pairs of a better and a worse answer",
    "sequence": "whole texts, spans or alignments; the order of items matters",
    "gradient": "gradients, and explanations made of them",
    "trajectory": "weights along a training, or states along a path",
    "distribution": "whole distributions, by moments, statistics or densities",
    "score": "score functions of diffusion models",
    "transport": "optimal transport",
    "prototype": "class means, clusters, codebooks",
    "consistency": "agreement of several views or steps of one thing",
    "reward": "returns, advantages and reward models",
    # who teaches
    "self": "the student itself, its past or its deeper parts",
    "momentum": "a moving average of the student",
    "online": "peers or teachers that learn along",
    "ensemble": "several models made into one",
    "multi_teacher": "several teachers, each with its own say",
    "assistant": "models of a size in between",
    "teacher_free": "no teacher at all",
    "privileged": "a teacher that sees more than the student will",
    "black_box": "a teacher that shows only text or labels",
    "cross_modal": "a teacher of another modality, or of several",
    "cross_architecture": "a teacher of quite another architecture",
    "cross_tokenizer": "a teacher with other tokens",
    "adversarial": "a critic or discriminator",
    # how the student is trained or made
    "stagewise": "several trainings in turn, or layer by layer",
    "schedule": "a target or weight that changes along the run; curricula",
    "weighting": "samples, tokens or terms weighted by what is seen",
    "routing": "a choice of experts, exits, teachers or neurons for each input",
    "masking": "parts of the input or of the features hidden",
    "augmentation": "made variants of the inputs",
    "initialisation": "weights to start from",
    "adapter": "small trained additions to frozen weights: prompts, low rank",
    "sharing": "weights used in several places",
    "pruning": "parts of the student removed",
    "quantisation": "weights or activations of few bits",
    "search": "a choice among candidate students",
    "optimiser": "what is done to the gradients: momenta, surgery",
    "bilevel": "a training inside a training: unrolled, implicit, meta",
    "regulariser": "a penalty without a target",
    "calibration": "confidence and uncertainty",
    # what it is trained on
    "data": "the data set itself: distilled, selected, filtered, corrected",
    "data_free": "no real data",
    "generative": "generators, of data or as the thing taught",
    "sampler": "samplers: fewer steps, other steps",
    "pseudo_label": "labels made by a model",
    "on_policy": "samples that the student made",
    "replay": "samples kept from before",
    "queue": "a memory of past embeddings, so that the order of samples matters",
    "self_supervised": "targets made from the inputs alone; pre-training",
    "label_free": "no or few true labels",
    "few_shot": "a handful of samples",
    "active": "samples chosen to be labelled",
    "domain": "a shift from one domain to another",
    # studies
    "measurement": "a study or survey: measures other methods",
}
"""The closed list of kinds, each with what it says of a method."""

GIVES: dict[str, str] = {
    "model": "a trained model",
    "data": "a data set",
    "sampler": "a function that draws samples",
    "policy": "a policy that acts",
    "scores": "a number for each candidate",
    "report": "a table of measurements",
}
"""What a method may give; each is a field of its result."""

ENTRIES: dict[str, str] = {
    "logits": "outputs before softmax, (B, C) or (B, T, V)",
    "signal": "the distribution over the next token at each place, whole or in part, (B, T)",
    "mid": "a feature from the middle of the model",
    "feature": "the last feature map or vector before pooling",
    "embedding": "the vector before the head, (B, D)",
    "blocks": "the list of what each block gives",
    "attention": "the list of each block's attention; of bags its scores, (B, K, N)",
    "instances": "logits of each instance of a bag, (B, N, C)",
    "hidden": "hidden states before the head, (B, T, D)",
    "head": "the module from hidden states to logits",
    "text": "written answers",
    "labels": "labels given by this side",
    "probabilities": "probabilities given by a black box, (B, C)",
}
"""What a side may show; asked of both sides unless `student:` or `teacher:` stands before it."""

PLAIN_NEEDS: dict[str, str] = {
    "y": "the true labels are read",
    "index": "the numbers of the samples are read",
    "weights": "the student's module is read",
    "teacher_weights": "the teacher's module is read",
    "again": "a side is looked at again",
    "teacher_graph": "gradients pass through the frozen teacher",
    "members": "the members of a crowd of teachers are read",
}
"""What else a method may need."""
