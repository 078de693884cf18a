"""_autograd.py — the one place where gradients will be wired in."""
import sys


def refuse_gradients(*tensors):
    """Backward doesn't exist yet: say so instead of returning a tensor that silently stops the gradient."""
    torch = sys.modules["torch"]
    if not torch.is_grad_enabled():
        return
    for t in tensors:
        if t is not None and getattr(t, "requires_grad", False):
            raise NotImplementedError("attn computes the forward pass only: call it under torch.no_grad(), "
                                      "or detach q, k, v. A backward pass is planned.")
