"""A backbone as a CPU computes it fastest: what follows a convolution is done within it.

Each step of its own writes every feature once more and reads it again. PyTorch does this when it compiles, which needs
a C++ compiler; the kernels that it calls then, oneDNN's, are there without one.
"""

import functools
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

_Kernel = Callable[..., torch.Tensor]


def fuse_for_cpu(backbone: fx.GraphModule, images: torch.Tensor) -> None:
    """Change a backbone that is `folded` to one that computes numbers of another type, and in fewer steps.

    What is added to a convolution is rounded once, not twice: results may differ in the last bits.

    Args:
        backbone: It takes images of any number and size afterwards, too.
        images: Such as it will be given most often, `[M, C, H, W]`; weights are ordered in memory as suits these.
    """
    backbone.to(images.dtype)
    modules = dict(backbone.named_modules())

    def is_a(node: fx.Node, kind: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(modules.get(str(node.target)), kind)

    for name, module in modules.items():
        if isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride, module.padding) == (3, 2, 1):
            backbone.set_submodule(name, MaxPool())
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    with torch.inference_mode():
        ShapeProp(backbone).propagate(images)
    for node in [each for each in backbone.graph.nodes if is_a(each, nn.Conv2d)]:
        following, added = _only_user(node), None
        if following is not None and following.target is operator.add:
            added = next(term for term in following.args if term is not node)
            following = _only_user(following)
        if following is None or not is_a(following, nn.ReLU):
            following, added = node, None
        name, source = f"fused_{node.name}", cast("fx.Node", node.args[0])
        shape = source.meta["tensor_meta"].shape
        backbone.add_submodule(name, _Fused(cast("nn.Conv2d", modules[str(node.target)]), shape, following is not node))
        with backbone.graph.inserting_before(following):  # where what is added is known, too
            together = backbone.graph.call_module(name, (source, added))
        together.meta = following.meta
        following.replace_all_uses_with(together)
        backbone.graph.eliminate_dead_code()
    backbone.recompile()
    backbone.delete_all_unused_submodules()


def folded(backbone: nn.Module) -> fx.GraphModule:
    """A copy of a backbone whose batch normalisations are folded into the convolutions before them; for inference."""
    return cast("fx.GraphModule", fuse(backbone.eval()).to(memory_format=torch.channels_last))


class MaxPool(nn.Module):
    """The largest of 3 × 3 pixels around every other one, as a ResNet pools, in 0.7 of the time on a CPU."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Of maps, `[N, F, H, W]`: `[N, F, ⌈H/2⌉, ⌈W/2⌉]`."""
        for axis in (2, 3):
            at = (slice(None),) * axis
            largest, odd = features[(*at, slice(0, None, 2))].clone(), features[(*at, slice(1, None, 2))]
            n_after = largest.shape[axis] - 1
            largest.narrow(axis, 0, odd.shape[axis]).clamp_min_(odd)
            largest.narrow(axis, 1, n_after).clamp_min_(odd.narrow(axis, 0, n_after))
            features = largest
        return features


class _Fused(nn.Module):
    """A convolution, another map added to it if there is one, and ReLU if wanted."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, convolution: nn.Conv2d, shape: Sequence[int], relu: bool) -> None:
        super().__init__()
        self._geometry = (
            *map(list, (convolution.padding, convolution.stride, convolution.dilation)),
            convolution.groups,
        )
        # Else oneDNN does so in each pass, which took 4 % of it.
        weight = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight.detach(), *self._geometry, list(shape))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())
        self._last = "relu" if relu else "none"

    def forward(self, features: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        return _kernel()(features, added, self.weight, self.bias, *self._geometry, self._last)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


@functools.cache
def _kernel() -> _Kernel:
    """`_convolved` as a script: a trace does not take oneDNN's lists of scalars."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
        return torch.jit.script(_convolved)


def _convolved(
    features: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    last: str,
) -> torch.Tensor:
    scalars: list[int | float | complex | None] = []
    if added is None:
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, weight, bias, padding, stride, dilation, groups, last, scalars, ""
        )
    else:
        result = torch.ops.mkldnn._convolution_pointwise(
            features, added, weight, bias, padding, stride, dilation, groups, "add", 1.0, last, scalars, None
        )
    return result
