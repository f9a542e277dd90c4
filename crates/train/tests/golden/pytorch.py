"""The numbers of PyTorch in the tests of src/optimizer.rs and src/loss.rs (made with torch 2.15)."""

import torch
import torch.nn.functional as F

torch.set_printoptions(precision=9)


def trajectory(make, steps=5):
    """Two groups, the second with ten times the rate and no weight decay; gradients are sin(value·3 + step)."""
    a = torch.tensor([0.5, -1.25, 2.0], requires_grad=True)
    b = torch.tensor([0.75, -0.1], requires_grad=True)
    optimizer = make([
        {"params": [a], "lr": 0.01, "weight_decay": 0.1},
        {"params": [b], "lr": 0.1, "weight_decay": 0.0},
    ])
    for step in range(steps):
        for p in (a, b):
            p.grad = torch.sin(p.detach() * 3 + step)
        optimizer.step()
    return torch.cat([a, b]).detach()


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups),
    "momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups),
    "adamw": lambda groups: torch.optim.AdamW(groups),
}
for name, make in OPTIMIZERS.items():
    print(name, [float(f"{x:.9g}") for x in trajectory(make).tolist()])

gradient = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
gradient[0].grad, gradient[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
print("norm", float(torch.nn.utils.clip_grad_norm_(gradient, 2.0)), [p.grad.tolist() for p in gradient])

logits = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.25, 0.0, -1.0, 2.5], [40.0, -30.0, 0.0, 5.0]], dtype=torch.float64)
teacher = torch.tensor([[0.5, -1.0, 0.0, 4.0], [1.0, 0.5, -2.0, 0.0], [3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
labels = torch.tensor([3, 0, 0])


def gradient_of(loss):
    x = logits.clone().requires_grad_()
    value = loss(x)
    value.backward()
    return float(f"{value.item():.12g}"), [float(f"{g:.9g}") for g in x.grad.reshape(-1).tolist()]


for smoothing in (0.0, 0.1):
    print("cross entropy", smoothing, gradient_of(lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing)))
T = 4.0
kl = lambda x: T * T * F.kl_div(
    F.log_softmax(x / T, 1), F.log_softmax(teacher / T, 1), reduction="batchmean", log_target=True)
print("distillation", gradient_of(kl))
