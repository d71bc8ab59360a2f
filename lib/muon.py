"""
The optimizer Muon. train.py gives it the matrices of the blocks; embeddings and output layer are
AdamW's.
"""
import torch


def orthogonal(matrix):
    """Nearly U V^T of a matrix U S V^T. It is divided by its norm; five steps of a polynomial then
    move singular values in [0.0016, 1] into [0.68, 1.21]; smaller ones grow up to 485-fold."""
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if is_tall else matrix  # then x @ x.T is the smaller of the two products
    x = x / x.norm().clamp(min=1e-7)     # no singular value is above 1
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, matrix by matrix (q, k and v are one matrix here,
    gate and up another): all its singular values become about 1, so that rare directions are
    learned as fast as common ones (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A step has the length of one of AdamW's, so both can have the same rate (Liu et al. 2025, arXiv
    2502.16982, section 2.2). torch.optim.Muon computes in bfloat16, at which many CPUs are slow.

    Like torch's fused optimizers, a step does nothing where `found_inf`, a tensor (), is 1.
    """

    def __init__(self, matrices, lr, weight_decay, momentum=0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.found_inf = torch.zeros(())

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                mean = state["mean"]
                gradient = torch.where(self.found_inf > 0, mean, p.grad)  # a bad one: it stays
                mean.lerp_(gradient, 1 - group["momentum"])
                update = orthogonal(gradient.lerp(mean, group["momentum"]))  # Nesterov's momentum
                # an orthogonal matrix's entries are about max(shape) ** -0.5, an AdamW step's 0.2
                length = group["lr"] * 0.2 * max(p.shape) ** 0.5
                kept = p * (1 - group["lr"] * group["weight_decay"])
                p.copy_(torch.where(self.found_inf > 0, p, kept.add_(update, alpha=-length)))
