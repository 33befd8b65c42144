"""What tests of several networks need."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def restless(network: nn.Module) -> nn.Module:
    """Batch norms that are no identity, so that units differ; in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def seen(model: nn.Module, images: torch.Tensor) -> tuple[dict, dict]:
    """Inputs and outputs of every module in a forward pass, as they were at that time."""
    inputs, outputs = {}, {}

    def note(name):
        def before(module, given) -> None:
            inputs[name] = given[0].clone()

        def after(module, given, output) -> None:
            outputs[name] = output.clone()

        return before, after

    handles = []
    for name, module in model.named_modules():
        before, after = note(name)
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return inputs, outputs


def macs(network: nn.Module, *inputs: torch.Tensor) -> float:
    """Multiplications and additions of a forward pass, by torch's counter, which counts either."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() / 2
