"""One-shot pruning of causal language models of transformers: blocks, masks, rotary positions, tied heads."""

import copy

import pytest
import torch

import bbnet

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 32, **SIZES}


def llama():
    """Rotary positions, gated units, shared key and value heads, a head of its own."""
    config = transformers.LlamaConfig(intermediate_size=64, num_key_value_heads=1, **COMMON)
    return transformers.LlamaForCausalLM(config), "model.layers", 7


def opt():
    """Learned positions, ReLU, dropout, a tied head."""
    config = transformers.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, pad_token_id=0, **COMMON)
    return transformers.OPTForCausalLM(config), "model.decoder.layers", 6


def gpt2():
    """Transposed weights, a tied head."""
    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=32, **SIZES)
    return transformers.GPT2LMHeadModel(config), "transformer.h", 4


def mistral():
    """Blocks with a sliding window."""
    config = transformers.MistralConfig(intermediate_size=64, num_key_value_heads=1, sliding_window=4, **COMMON)
    return transformers.MistralForCausalLM(config), "model.layers", 7


BUILDERS = [llama, opt, gpt2, mistral]


def batches(padding=0):
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(3, 64, (2, 12), generator=generator) for _ in range(3)]
    valid = torch.ones(2, 12, dtype=torch.long)
    pad = torch.nn.functional.pad
    return [{"input_ids": pad(each, (0, padding)), "attention_mask": pad(valid, (0, padding))} for each in tokens]


def built(build):
    torch.manual_seed(0)
    model, blocks, count = build()
    return model, blocks, count


def one_by_one(model, blocks, method, budget):
    """Each block with the blocks before it pruned, on the whole model, so that no argument of a block is kept."""
    masks = {}
    for block, _ in enumerate(model.get_submodule(blocks)):
        dense = copy.deepcopy(model)
        names = [name for name, module in model.named_modules() if name.startswith(f"{blocks}.{block}.")]
        layers = [name for name in names if bbnet.sparsity.slab.is_layer(model.get_submodule(name))]
        for name in layers:
            single = copy.deepcopy(dense)
            # A layer and one of another block are in no common block, so that the whole model is run.
            masks |= bbnet.prune_one_shot(single, batches(), method, budget, layers=[name]).masks()
            model.get_submodule(name).load_state_dict(single.get_submodule(name).state_dict())
    return masks


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "ria", "magnitude", "budgeted_broadcast", "random"])
def test_every_linear_layer_of_the_blocks_is_pruned_and_nothing_else(build, method):
    model, blocks, count = built(build)
    before = copy.deepcopy(model.state_dict())
    uses_cache = model.config.use_cache
    done = bbnet.prune_one_shot(model.train(), batches(), method, 0.5)
    assert len(done.densities) == 3 * count
    assert set(done.densities.values()) == {0.5}
    assert all(name.startswith(blocks) for name in done.densities)
    assert done.left_dense == {}
    assert model.training
    assert model.config.use_cache == uses_cache
    for name, mask in done.masks().items():
        layer = model.get_submodule(name)
        weight = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
        assert not weight[~mask].any()
    pruned = {f"{name}.weight" for name in done.densities}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name not in pruned)
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("build", BUILDERS)
def test_blocks_get_the_arguments_that_the_model_gives_them(build):
    model, blocks, _ = built(build)
    with torch.no_grad():
        expected = model.eval()(**batches()[0]).logits
    # With everything kept, the outputs of the blocks run alone are those of the model.
    done = bbnet.prune_one_shot(model, batches(), "wanda", 1)
    with torch.no_grad():
        torch.testing.assert_close(model(**batches()[0]).logits, expected, atol=0, rtol=0)
    assert set(done.densities.values()) == {1.0}
    alone, whole = built(build)[0], built(build)[0]
    masks = bbnet.prune_one_shot(alone, batches(), "sparsegpt", 0.5).masks()
    reference = one_by_one(whole, blocks, "sparsegpt", 0.5)
    assert all(torch.equal(mask, reference[name]) for name, mask in masks.items())
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_padding_changes_no_mask(build):
    masks = [bbnet.prune_one_shot(built(build)[0], batches(padding), "wanda", 0.5).masks() for padding in (0, 5)]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"allocation": "owl"}, {"side": "out"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_models_are_saved_and_loaded_as_others(build, options, dtype, tmp_path):
    model = built(build)[0].to(dtype)
    method = "budgeted_broadcast" if "side" in options else "sparsegpt"
    done = bbnet.prune_one_shot(model, batches(), method, 0.5, **options)
    kept = sum(int(mask.sum()) for mask in done.masks().values())
    assert kept == sum(mask.numel() for mask in done.masks().values()) / 2
    bbnet.export(model).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    if dtype == torch.float32:
        with torch.no_grad():
            expected = model.eval()(**batches()[0]).logits
            assert torch.equal(loaded.eval()(**batches()[0]).logits, expected)


def test_the_hidden_units_of_a_feed_forward_block_decide_its_degrees():
    model = built(llama)[0]
    dense = copy.deepcopy(model).eval()
    read = []
    hook = dense.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *call: read.append(call[2].detach() > 0))
    with torch.no_grad():
        for batch in batches():
            dense(**batch)
    hook.remove()
    rates = torch.cat([each.flatten(0, 1) for each in read]).double().mean(0)
    done = bbnet.prune_one_shot(model, batches(), "budgeted_broadcast", 0.3, layers=["model.layers.0.mlp.*"])
    expected = bbnet.allocate_degrees(rates, 32, 0.3)
    for name in ("gate_proj", "up_proj"):
        assert torch.equal(done.masks()[f"model.layers.0.mlp.{name}"].sum(1), expected)
