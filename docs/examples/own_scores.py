"""Scores made outside of a run: Grad-Dot in plain PyTorch, on the model that runs attribute."""

import torch
from torch.func import functional_call, grad, vmap

import tdabench

task = tdabench.open_task("digits-mlp")
model = task.member(0).module()
parameters = {name: value.detach() for name, value in model.named_parameters()}


def gradients(function, examples):
    """Return the gradient of each example, [n, number of parameters]."""

    def value(parameters, x, y):
        logits = functional_call(model, parameters, (x.unsqueeze(0),))
        return function(logits, y.unsqueeze(0)).squeeze(0)

    found = vmap(grad(value), in_dims=(None, 0, 0))(parameters, examples.inputs, examples.labels)
    return torch.cat([part.flatten(1) for part in found.values()], dim=1)


queries = gradients(task.target_function, task.queries)
training = gradients(task.loss_function, task.training)
scores = -queries @ training.T  # [n_queries, n_train]; minus, as training goes down the loss

found = tdabench.score(scores, "digits-mlp")
print(f"LDS {found.lds:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}, noise ceiling {found.ceiling:.3f}")
