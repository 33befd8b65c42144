"""Prints how far the memory of a process grows while it prunes a decoder, in bytes: argv = method, width, depth.

Also printed are the bytes of the weights of one of its blocks, whose shapes are those of GPT-2.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from bbnet.sparsity.one_shot.prune import prune_one_shot

LENGTH, SEQUENCES = 32, 4


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden):
        query, key, value = self.attention(hidden).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.projection(attended)
        return hidden + self.down(functional.gelu(self.up(hidden)))


def memory(line):
    """VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(each.split()[1]) * 1024 for each in status if each.startswith(line))


def prune(method, width, depth):
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for _ in range(depth)))
    batches = [torch.randn(1, LENGTH, width) for _ in range(SEQUENCES)]
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")
    before = memory("VmRSS")
    prune_one_shot(model, batches, method, 0.5)
    return memory("VmHWM") - before, sum(each.numel() * each.element_size() for each in model[0].parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    prune(sys.argv[1], int(sys.argv[2]), 1)  # imports, and the code and buffers of libraries
    print(*prune(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
