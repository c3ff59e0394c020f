"""Products of LeNet's Hessian and Gauss-Newton matrix with vectors, in every way that PyTorch has: for geometry.py.

Each way takes the network, chunks of examples and its settings, and gives a function from vectors V `[K, P]` to the matrix times
each row, `[K, P]`; P flat in the order of PyTorch's state_dict, the matrix that of the mean cross-entropy over the chunks.
"""

from collections.abc import Callable

import torch
from classifiers import laid_out
from networks import LeNet
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.func import functional_call, jvp, vmap
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]


class Net(LeNet):
    """LeNet; `pool` says how a block ends, the same numbers each time: `relu-first` as it is usually written, `relu-last`
    with a quarter of the work, `views` by the maximum of strided views instead of max_pool2d."""

    def __init__(self, pool: str = "relu-first"):
        super().__init__(relu_first=pool == "relu-first")
        self.views = pool == "views"

    def pool(self, x: Tensor) -> Tensor:
        if not self.views:
            return super().pool(x)
        rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return F.relu(torch.maximum(rows[..., ::2], rows[..., 1::2]))


def network(weights: dict[str, Tensor], choice: dict) -> Net:
    net = Net(choice["pool"])
    net.load_state_dict(weights)
    return net.to(memory_format=torch.channels_last) if choice["channels_last"] else net


def split(vectors: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """`[…, P]` as tensors of the shapes of the parameters, `[…, shape]`."""
    parts = vectors.split([p.numel() for p in parameters], -1)
    return [part.reshape(*vectors.shape[:-1], *p.shape) for part, p in zip(parts, parameters)]


def joined(tensors: tuple[Tensor, ...] | list[Tensor], batch_dimensions: int) -> Tensor:
    return torch.cat([tensor.detach().flatten(batch_dimensions) for tensor in tensors], -1)


def chunks(images: Tensor, labels: Tensor, choice: dict) -> list[tuple[Tensor, Tensor]]:
    size = choice["chunk"]
    return [(laid_out(x, choice), y) for x, y in zip(images.split(size), labels.split(size))]


def curvlinops_product(matrix: str) -> Callable[..., Product]:
    def make(net: Net, parts: list, choice: dict) -> Product:
        import curvlinops

        operator = {"hvp": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[matrix]
        count = sum(len(y) for _, y in parts)
        of = operator(
            net, nn.CrossEntropyLoss(), list(net.parameters()), parts, check_deterministic=False, num_data=count
        )

        def product(vectors: Tensor) -> Tensor:
            if choice["columns"] == "matrix":
                return (of @ vectors.T).T
            return torch.stack([of @ vector for vector in vectors])

        return product

    return make


def added(parts: list, count: int, of: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    total = None
    for x, y in parts:
        found = of(x, y, len(y) / count)
        total = found if total is None else total.add_(found)
    return total


def count_of(parts: list) -> int:
    return sum(len(y) for _, y in parts)


def double_backward(net: Net, parts: list, choice: dict) -> Product:
    """`∇(∇L · v)`; the graph of a chunk's gradient serves all vectors, and, where `kept`, all later products too."""
    parameters, count = list(net.parameters()), count_of(parts)

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return grad(F.cross_entropy(net(x), y, reduction="sum") / count, parameters, create_graph=True)

    kept = [gradient(x, y) for x, y in parts] if choice["kept"] else None

    def product(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for index, (x, y) in enumerate(parts):
            of = gradient(x, y) if kept is None else kept[index]
            for row, vector in enumerate(vectors):
                last = kept is None and row + 1 == len(vectors)
                found = grad(of, parameters, grad_outputs=split(vector, parameters), retain_graph=not last)
                total[row] += joined(found, 0)
        return total

    return product


def functional(net: Net, x: Tensor) -> Callable[..., Tensor]:
    names = [name for name, _ in net.named_parameters()]
    return lambda *values: functional_call(net, dict(zip(names, values)), (x,))


def forward_over_reverse(net: Net, parts: list, choice: dict) -> Product:
    """The derivative of the gradient along v, forwards: torch.func's jvp of grad."""
    parameters, count = list(net.parameters()), count_of(parts)
    values = tuple(p.detach() for p in parameters)

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        outputs = functional(net, x)
        gradient = torch.func.grad(lambda *p: F.cross_entropy(outputs(*p), y), tuple(range(len(values))))
        return jvp(gradient, values, tuple(part * weight for part in vector))[1]

    return mapped_or_not(one, parameters, parts, count, choice)


def reverse_over_forward(net: Net, parts: list, choice: dict) -> Product:
    """The gradient of the derivative of the loss along v: one forward pass with tangents, one backward. The derivative of
    cross-entropy is written out, since PyTorch's for log_softmax changes in place what the backward pass needs."""
    parameters, count = list(net.parameters()), count_of(parts)
    names = [name for name, _ in net.named_parameters()]

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, part) for p, part in zip(parameters, vector)]
            z, along = forward_ad.unpack_dual(functional_call(net, dict(zip(names, duals)), (x,)))
            slope = (z.softmax(1) - F.one_hot(y, z.shape[1])) * (weight / len(y))
            return grad((slope * along).sum(), parameters)

    return one_by_one(one, parameters, parts, count)


def one_by_one(one: Callable, parameters: list, parts: list, count: int) -> Product:
    def product(vectors: Tensor) -> Tensor:
        rows = [split(vector, parameters) for vector in vectors]
        return added(
            parts, count, lambda x, y, weight: torch.stack([joined(one(x, y, weight, *row), 0) for row in rows])
        )

    return product


def mapped_or_not(one: Callable, parameters: list, parts: list, count: int, choice: dict) -> Product:
    if choice["columns"] == "one":
        return one_by_one(one, parameters, parts, count)
    mapped = vmap(one, (None, None, None, *[0] * len(parameters)))

    def product(vectors: Tensor) -> Tensor:
        rows = split(vectors, parameters)
        return added(parts, count, lambda x, y, weight: joined(mapped(x, y, weight, *rows), 1))

    return product


def r_operator(matrix: str) -> Callable[..., Product]:
    """Pearlmutter's R-operator (1994), layer by layer: first-order kernels only, and what does not depend on v (activations, winners
    of the pooling, gradients) is, where `kept`, kept from product to product. Backwards, the Gauss-Newton matrix has only the terms
    without the gradients d. `columns`: all vectors go through the first convolution at once, or each alone."""

    def make(net: Net, parts: list, choice: dict) -> Product:
        return r_product(net, parts, choice, hessian=matrix == "hvp")

    return make


def pooled(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """2x2 maxima after ReLU, their indices, and where ReLU passes them on."""
    largest, winners = F.max_pool2d(a, 2, return_indices=True)
    return F.relu(largest), winners, (largest > 0).to(a.dtype)


def taken(a: Tensor, winners: Tensor) -> Tensor:
    """What a pooling takes of a tangent."""
    return a.flatten(2).gather(2, winners.flatten(2)).view_as(winners)


def spread(delta: Tensor, winners: Tensor, side: int) -> Tensor:
    """A gradient back through a pooling."""
    whole = delta.new_zeros(*delta.shape[:2], side * side)
    return whole.scatter_(2, winners.flatten(2), delta.flatten(2)).view(*delta.shape[:2], side, side)


def to_weight(x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return torch.nn.grad.conv2d_weight(x, weight.shape, delta)


def to_input(x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
    return torch.nn.grad.conv2d_input(x.shape, weight, delta)


def r_product(net: Net, parts: list, choice: dict, hessian: bool) -> Product:
    """h: activations, i: winners, m: masks of ReLU, p: probabilities, d: gradients; r and e: derivatives of h and d along v."""
    parameters, count = [p.detach() for p in net.parameters()], count_of(parts)
    w1, _, w2, _, w3, _, w4, _, w5, _ = parameters

    @torch.no_grad()
    def still(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """All that does not depend on v."""
        h1, i1, m1 = pooled(net.conv1(x))
        h2, i2, m2 = pooled(net.conv2(h1))
        s3 = net.fc1(h2.flatten(1))
        h3 = F.relu(s3)
        s4 = net.fc2(h3)
        h4 = F.relu(s4)
        m3, m4 = (s3 > 0).to(h3.dtype), (s4 > 0).to(h4.dtype)
        p = net.fc3(h4).softmax(1)
        found = dict(h1=h1, i1=i1, m1=m1, h2=h2, i2=i2, m2=m2, h3=h3, m3=m3, h4=h4, m4=m4, p=p)
        if hessian:
            d5 = (p - F.one_hot(y, p.shape[1])) / count
            d4 = (d5 @ w5) * m4
            d3 = (d4 @ w4) * m3
            found |= dict(d5=d5, d4=d4, d3=d3, d2=spread((d3 @ w3).view_as(h2) * m2, i2, 10))
        return found

    kept = [still(x, y) for x, y in parts] if choice["kept"] else None

    def one(x: Tensor, k: dict[str, Tensor], first: Tensor, vector: list[Tensor]) -> Tensor:
        """`first`: the derivative of the first convolution along v."""
        _, _, v2, c2, v3, c3, v4, c4, v5, c5 = vector
        r1 = taken(first, k["i1"]) * k["m1"]
        # Two terms each: channels side by side make one convolution of them.
        r2 = taken(F.conv2d(torch.cat([k["h1"], r1], 1), torch.cat([v2, w2], 1), c2), k["i2"]) * k["m2"]
        h2, q2 = k["h2"].flatten(1), r2.flatten(1)
        r3 = torch.addmm(torch.addmm(c3, h2, v3.T), q2, w3.T) * k["m3"]
        r4 = torch.addmm(torch.addmm(c4, k["h3"], v4.T), r3, w4.T) * k["m4"]
        r5 = torch.addmm(torch.addmm(c5, k["h4"], v5.T), r4, w5.T)
        e5 = k["p"] * (r5 - (k["p"] * r5).sum(1, keepdim=True)) / count
        if hessian:
            e4 = torch.addmm(k["d5"] @ v5, e5, w5) * k["m4"]
            e3 = torch.addmm(k["d4"] @ v4, e4, w4) * k["m3"]
            e2 = spread(torch.addmm(k["d3"] @ v3, e3, w3).view_as(r2) * k["m2"], k["i2"], 10)
            e1 = to_input(k["h1"], torch.cat([w2, v2], 0), torch.cat([e2, k["d2"]], 1))
            g5 = torch.addmm(e5.T @ k["h4"], k["d5"].T, r4)
            g4 = torch.addmm(e4.T @ k["h3"], k["d4"].T, r3)
            g3 = torch.addmm(e3.T @ h2, k["d3"].T, q2)
            g2 = to_weight(k["h1"], w2, e2) + to_weight(r1, w2, k["d2"])
        else:
            e4 = (e5 @ w5) * k["m4"]
            e3 = (e4 @ w4) * k["m3"]
            e2 = spread((e3 @ w3).view_as(r2) * k["m2"], k["i2"], 10)
            e1 = to_input(k["h1"], w2, e2)
            g5, g4, g3, g2 = e5.T @ k["h4"], e4.T @ k["h3"], e3.T @ h2, to_weight(k["h1"], w2, e2)
        e1 = spread(e1 * k["m1"], k["i1"], 28)
        of_weights = [to_weight(x, w1, e1), g2, g3, g4, g5]
        of_biases = [e1.sum((0, 2, 3)), e2.sum((0, 2, 3)), e3.sum(0), e4.sum(0), e5.sum(0)]
        return joined([part for pair in zip(of_weights, of_biases) for part in pair], 0)

    @torch.no_grad()
    def product(vectors: Tensor) -> Tensor:
        rows = [split(vector, parameters) for vector in vectors]
        weights, biases = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        total = torch.zeros_like(vectors)
        for index, (x, y) in enumerate(parts):
            k = still(x, y) if kept is None else kept[index]
            together = choice["columns"] == "matrix"
            firsts = F.conv2d(x, weights, biases).split(len(w1), 1) if together else [None] * len(rows)
            for row, first in enumerate(firsts):
                first = F.conv2d(x, rows[row][0], rows[row][1]) if first is None else first
                total[row] += one(x, k, first, rows[row])
        return total

    return product


def gauss_newton(net: Net, parts: list, choice: dict) -> Product:
    """`Jᵀ S J v`, S the loss's Hessian with respect to the logits: one forward pass with tangents serves J and Jᵀ."""
    parameters, count = list(net.parameters()), count_of(parts)
    names = [name for name, _ in net.named_parameters()]

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, part) for p, part in zip(parameters, vector)]
            z, along = forward_ad.unpack_dual(functional_call(net, dict(zip(names, duals)), (x,)))
            along, p = along.detach(), z.detach().softmax(1)
            curved = p * (along - (p * along).sum(1, keepdim=True)) * (weight / len(y))
            return grad(z, parameters, grad_outputs=curved)

    return one_by_one(one, parameters, parts, count)


def gauss_newton_func(net: Net, parts: list, choice: dict) -> Product:
    """The same by torch.func's jvp and vjp, mapped over the vectors or not."""
    parameters, count = list(net.parameters()), count_of(parts)
    values = tuple(p.detach() for p in parameters)

    def one(x: Tensor, y: Tensor, weight: float, *vector: Tensor) -> tuple[Tensor, ...]:
        outputs = functional(net, x)
        z, along = jvp(outputs, values, vector)
        p = z.softmax(1)
        curved = p * (along - (p * along).sum(1, keepdim=True)) * (weight / len(y))
        return torch.func.vjp(outputs, *values)[1](curved)

    return mapped_or_not(one, parameters, parts, count, choice)


WAYS: dict[str, dict[str, Callable[..., Product]]] = {
    "hvp": {
        "double-backward": double_backward,
        "reverse-over-forward": reverse_over_forward,
        "forward-over-reverse": forward_over_reverse,
        "r-operator": r_operator("hvp"),
        "curvlinops": curvlinops_product("hvp"),
    },
    "ggn": {
        "dual": gauss_newton,
        "func": gauss_newton_func,
        "r-operator": r_operator("ggn"),
        "curvlinops": curvlinops_product("ggn"),
    },
}
