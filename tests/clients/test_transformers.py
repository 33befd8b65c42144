"""Hugging Face transformers: sparsified under its Trainer, resumed from checkpoints, saved and loaded as a model."""

from pathlib import Path

import pytest
import torch

import bbnet

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS, SAVED_AT, BUDGET = 20, 9, 0.3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def bert():
    """A classifier with dropout."""
    config = transformers.BertConfig(intermediate_size=64, max_position_embeddings=16, **SIZES)
    return transformers.BertForSequenceClassification(config)


def llama():
    """A causal language model with gated units."""
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.LlamaConfig(intermediate_size=64, max_position_embeddings=16, **SIZES, **tokens)
    return transformers.LlamaForCausalLM(config)


def opt():
    """A causal language model with ReLU and dropout, whose weights of the output are those of the embedding."""
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 16, "bos_token_id": 1}
    return transformers.OPTForCausalLM(transformers.OPTConfig(eos_token_id=2, pad_token_id=0, **sizes, **SIZES))


def examples(model, padding=None):
    """Returns 64 sequences: of length 8, or if there is a token for `padding`, of lengths 4 to 8."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 64, (64, 8), generator=generator)
    valid = torch.ones_like(tokens)
    if padding is not None:
        lengths = torch.randint(4, 9, (64, 1), generator=generator)
        valid = (torch.arange(8) < lengths).long()
        tokens = torch.where(valid == 1, tokens, padding)
    labels = tokens[:, 0] % 2 if isinstance(model, transformers.BertForSequenceClassification) else tokens
    columns = {"input_ids": tokens, "attention_mask": valid, "labels": labels}
    return [{name: column[index] for name, column in columns.items()} for index in range(64)]


class KeepSparsifier(transformers.TrainerCallback):
    """Saves the state of a sparsifier in each checkpoint, and loads it when a training is resumed."""

    def __init__(self, sparsifier):
        self.sparsifier = sparsifier

    def on_save(self, args, state, control, **kwargs):
        torch.save(self.sparsifier.state_dict(), self._file(args, state))

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > 0:
            self.sparsifier.load_state_dict(torch.load(self._file(args, state)))

    def _file(self, args, state):
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"sparsifier-{args.process_index}.pt"


class CheckEveryStep(transformers.TrainerCallback):
    def __init__(self, check):
        self.check = check

    def on_step_end(self, args, state, control, **kwargs):
        self.check(state.global_step)


def trainer_of(model, folder, **options):
    """A Trainer of 20 steps of two micro-batches each, which saves after 9, 18 and 20 of them."""
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": STEPS}
    saving = {"save_strategy": "steps", "save_steps": SAVED_AT, "logging_strategy": "no", "report_to": "none"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, learning_rate=0.01, **settings, **saving, **options
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=examples(model))


def sparsified(build, folder, method="sp_in", seed=0, keeps=True, budget=BUDGET, dtype=torch.float32, **options):
    """Returns the model, its Trainer, slabs and sparsifier, made as a user of the Trainer would make them."""
    torch.manual_seed(seed)
    model = build().to(dtype)
    trainer = trainer_of(model, folder, **options)
    optimizer = trainer.create_optimizer()
    slabs = bbnet.find_slabs(model, side="out" if method == "sp_out" else "in")
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, budget, total_steps=STEPS, every=2)
    if keeps:
        trainer.add_callback(KeepSparsifier(sparsifier))
    return model, trainer, slabs, sparsifier


@pytest.mark.parametrize("build", [bert, llama, opt])
@pytest.mark.parametrize("numbers", ["float32", "autocast", "bfloat16"])
def test_micro_batches_count_as_one_step_and_every_refresh_meets_its_budget(build, numbers, tmp_path, check_exact):
    dtype = torch.bfloat16 if numbers == "bfloat16" else torch.float32
    model, trainer, slabs, sparsifier = sparsified(build, tmp_path, dtype=dtype, bf16=numbers == "autocast")
    steps = []

    def check(step):
        steps.append((step, sparsifier.step))
        check_exact(model, sparsifier, slabs, sparsifier.refreshes[-1]["budget"] if sparsifier.refreshes else 1)

    trainer.add_callback(CheckEveryStep(check))
    trainer.train()
    assert steps == [(step, step) for step in range(1, STEPS + 1)]
    assert sorted({row["step"] for row in sparsifier.refreshes}) == [2, 4, 6, 8, 10, 12, 14, 15]
    check_exact(model, sparsifier, slabs, BUDGET)


@pytest.mark.parametrize("build", [bert, llama])
def test_a_watched_training_ends_in_the_same_bits_and_no_tensor_is_stuck(build, tmp_path, same):
    plain, trainer, *_ = sparsified(build, tmp_path / "plain")
    trainer.train()
    model, trainer, *_ = sparsified(build, tmp_path / "watched")
    with bbnet.watch(model, trainer.optimizer, every=5) as watched:
        trainer.train()
    assert same(model.state_dict(), plain.state_dict())
    rows = watched.rows()
    assert {row["parameter"] for row in rows} == {name for name, _ in model.named_parameters()}
    assert {row["observations"] for row in rows} == {STEPS // 5}
    assert not [verdict for verdict in watched.verdicts() if verdict["check"] == "never updated"]


def test_an_optimizer_given_to_the_trainer_is_sparsified_before(tmp_path, check_exact):
    torch.manual_seed(0)
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS)
    slabs = bbnet.find_slabs(model)
    sparsifier = bbnet.sparsify(model, optimizer, slabs, "sp_in", BUDGET, total_steps=STEPS, every=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=STEPS, report_to="none"
    )
    transformers.Trainer(
        model=model, args=arguments, train_dataset=examples(model), optimizers=(optimizer, schedule)
    ).train()
    assert sparsifier.step == STEPS
    check_exact(model, sparsifier, slabs, BUDGET)


class SparseTrainer(transformers.Trainer):
    """Sparsifies its model as soon as it makes the optimizer, when it knows the number of steps."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        self.slabs = bbnet.find_slabs(self.model)
        self.sparsifier = bbnet.sparsify(
            self.model, optimizer, self.slabs, "sp_in", BUDGET, total_steps=self.state.max_steps, every=2
        )
        self.add_callback(KeepSparsifier(self.sparsifier))
        return optimizer


def test_a_trainer_that_sparsifies_itself_is_resumed_to_the_same_bits(tmp_path, same, check_exact):
    trainers = []
    for checkpoint in (None, str(tmp_path / "checkpoint-8")):
        torch.manual_seed(len(trainers))
        model = bert()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            num_train_epochs=4,
            save_steps=8,
        )
        trainer = SparseTrainer(model=model, args=arguments, train_dataset=examples(model))
        trainer.train(resume_from_checkpoint=checkpoint)
        trainers.append(trainer)
        assert trainer.sparsifier.step == trainer.state.max_steps == 32
        check_exact(model, trainer.sparsifier, trainer.slabs, BUDGET)
    straight, resumed = trainers
    assert same(resumed.model.state_dict(), straight.model.state_dict())
    assert same(resumed.sparsifier.state_dict(), straight.sparsifier.state_dict())


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "adagrad", "rmsprop", "sgd"])
def test_pruned_weights_stay_zero_under_optimizers_of_the_trainer(name, tmp_path, check_exact):
    model, trainer, slabs, sparsifier = sparsified(bert, tmp_path, optim=name, weight_decay=0.1)
    trainer.train()
    assert sparsifier.step == STEPS
    check_exact(model, sparsifier, slabs, BUDGET)


@pytest.mark.parametrize("method", ["sp_in", "sp_out", "magnitude", {"algorithm": "rigl"}, {"algorithm": "set"}])
@pytest.mark.parametrize("build", [bert, opt])
def test_a_resumed_checkpoint_ends_in_the_straight_runs_bits(build, method, tmp_path, same, check_exact):
    model, trainer, slabs, sparsifier = sparsified(build, tmp_path, method)
    trainer.train()
    resumed, other, _, again = sparsified(build, tmp_path, method, seed=1)
    assert not same(resumed.state_dict(), model.state_dict())
    other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED_AT}"))
    assert same(resumed.state_dict(), model.state_dict())
    assert same(again.state_dict(), sparsifier.state_dict())
    check_exact(resumed, again, slabs, BUDGET)


def test_a_resumed_bf16_training_ends_in_the_straight_runs_bits(tmp_path, same, check_exact):
    model, trainer, slabs, sparsifier = sparsified(bert, tmp_path, bf16=True)
    trainer.train()
    resumed, other, _, again = sparsified(bert, tmp_path, seed=1, bf16=True)
    other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED_AT}"))
    assert same(resumed.state_dict(), model.state_dict())
    assert same(again.state_dict(), sparsifier.state_dict())
    check_exact(resumed, again, slabs, BUDGET)


def test_a_checkpoint_resumed_without_the_sparsifiers_state_is_warned_of(tmp_path):
    sparsified(bert, tmp_path)[1].train()
    trainer = sparsified(bert, tmp_path, keeps=False)[1]
    with pytest.warns(UserWarning, match="load also the sparsifier's state_dict"):
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED_AT}"))


@pytest.mark.parametrize("build", [bert, llama, opt])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_export_saved_and_loaded_has_the_same_zeros_and_logits(build, autocast, tmp_path, same, check_exact):
    model, trainer, slabs, sparsifier = sparsified(build, tmp_path, bf16=autocast)
    trainer.train()
    exported = bbnet.export(model)
    exported.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    assert same(loaded.state_dict(), model.state_dict())
    check_exact(loaded, sparsifier, slabs, BUDGET)
    tokens = torch.randint(3, 64, (4, 8))
    with torch.no_grad():
        logits = loaded(input_ids=tokens).logits
        plain = build().eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(logits, plain(input_ids=tokens).logits)
        if not autocast:
            assert torch.equal(logits, exported(input_ids=tokens).logits)
            assert torch.equal(logits, model.eval()(input_ids=tokens).logits)


def test_the_last_checkpoint_is_a_plain_sparse_model(tmp_path, same, check_exact):
    model, trainer, slabs, sparsifier = sparsified(bert, tmp_path)
    trainer.train()
    loaded = type(model).from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert same(loaded.state_dict(), model.state_dict())
    check_exact(loaded, sparsifier, slabs, BUDGET)


def test_activations_computed_again_change_no_mask_and_no_weight(tmp_path, same, check_exact):
    states = []
    for again in (False, True):
        model, trainer, slabs, sparsifier = sparsified(bert, tmp_path, activation_checkpointing=again)
        trainer.train()
        states.append([model.state_dict(), sparsifier.masks()])
        check_exact(model, sparsifier, slabs, BUDGET)
    assert same(*states)


def vit():
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    config = transformers.ViTConfig(intermediate_size=64, image_size=32, patch_size=8, **sizes)
    return transformers.ViTForImageClassification(config)


def t5():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


# The layers of each block that are slabs of side in and of side out. There are more, which are not asserted.
def gpt2():
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, **TOKENS)
    return transformers.GPT2LMHeadModel(config)


def whisper():
    layers = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 1}
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**layers, **widths, **TOKENS))


def t5_gated():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5ForConditionalGeneration(config)


TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Names of layers in every block, as slabs of side in and out.
FOUND = {
    bert: (["bert.encoder.layer.{}.intermediate.dense"], ["bert.encoder.layer.{}.output.dense"]),
    llama: (["model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"], ["model.layers.{}.mlp.down_proj"]),
    opt: (["model.decoder.layers.{}.fc1"], ["model.decoder.layers.{}.fc2"]),
    gpt2: (["transformer.h.{}.mlp.c_fc"], ["transformer.h.{}.mlp.c_proj"]),
    whisper: (
        ["model.encoder.layers.{}.fc1", "model.decoder.layers.{}.fc1"],
        ["model.encoder.layers.{}.fc2", "model.decoder.layers.{}.fc2"],
    ),
    vit: (["vit.layers.{}.mlp.fc1"], ["vit.layers.{}.mlp.fc2"]),
    t5: (["encoder.block.{}.layer.1.DenseReluDense.wi"], ["encoder.block.{}.layer.1.DenseReluDense.wo"]),
    t5_gated: (
        [f"decoder.block.{{}}.layer.2.DenseReluDense.{name}" for name in ("wi_0", "wi_1")],
        ["decoder.block.{}.layer.2.DenseReluDense.wo"],
    ),
}


@pytest.mark.parametrize("build", FOUND)
def test_the_feed_forward_layers_of_every_block_are_found(build):
    model = build()
    wanted = dict(zip(("in", "out"), FOUND[build], strict=True))
    both = {slab.name for slab in bbnet.find_slabs(model, side="both")}
    for side, names in wanted.items():
        layers = {name.format(block) for name in names for block in range(2)}
        assert layers <= {slab.name for slab in bbnet.find_slabs(model, side=side)}
        assert layers <= both
    kinds = ("embed", "norm", "attn", "attention", "lm_head")
    assert not any(kind in name.lower() for name in both for kind in kinds)


def test_experts_that_are_one_parameter_are_refused_by_name():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.MixtralConfig(num_key_value_heads=2, num_local_experts=2, **sizes, **TOKENS)
    with pytest.raises(ValueError, match="MixtralExperts is neither Linear nor a convolution"):
        bbnet.find_slabs(transformers.MixtralForCausalLM(config))


@pytest.mark.parametrize("side", ["in", "out", "both"])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_transposed_and_gated_layers_meet_their_budget_and_are_saved(build, side, tmp_path, check_exact):
    torch.manual_seed(0)
    model = build()
    slabs = bbnet.find_slabs(model, side)
    method = {"algorithm": "budgeted_broadcast", "side": side}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier = bbnet.sparsify(model, optimizer, slabs, method, BUDGET, total_steps=STEPS, every=2)
    tokens = torch.randint(64, (4, 16))
    for _ in range(STEPS):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        check_exact(model, sparsifier, slabs, sparsifier.refreshes[-1]["budget"] if sparsifier.refreshes else "1")
    bbnet.export(model).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    check_exact(loaded, sparsifier, slabs, BUDGET)
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens).logits
        torch.testing.assert_close(loaded.eval()(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)
        smaller = bbnet.export(model, remove_units=True)
        torch.testing.assert_close(smaller(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)


def test_a_tied_head_is_refused():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="slab lm_head: its weight is also that of transformer.wte"):
        bbnet.sparsify(model, optimizer, [bbnet.Slab("lm_head", "in", "lm_head")], "sp_in", 0.5, total_steps=20)


class TrainerWithPadding(transformers.Trainer):
    """Excludes padded positions from the on-rates of its `sparsifier`."""

    def compute_loss(self, model, inputs, **options):
        with self.sparsifier.valid(inputs["attention_mask"].bool()):
            return super().compute_loss(model, inputs, **options)


@pytest.mark.parametrize("excludes", [True, False])
def test_padded_positions_count_only_unless_they_are_excluded(excludes, tmp_path, check_exact):
    masks = []
    for padding in (0, 1):
        torch.manual_seed(0)
        model = bert()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=STEPS, report_to="none"
        )
        kind = TrainerWithPadding if excludes else transformers.Trainer
        trainer = kind(model=model, args=arguments, train_dataset=examples(model, padding))
        trainer.sparsifier = bbnet.sparsify(
            model, trainer.create_optimizer(), bbnet.find_slabs(model), "sp_in", BUDGET, total_steps=STEPS, every=2
        )
        trainer.train()
        masks.append(trainer.sparsifier.masks())
        check_exact(model, trainer.sparsifier, bbnet.find_slabs(model), BUDGET)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0]) == excludes
