"""Every wrong study or knob is refused in one line that names file, key and what is allowed."""

from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile

from bbnet.study.config import (
    ConfigError,
    Knobs,
    Study,
    canonical_budget,
    check_schedules,
    check_writable,
    of_tasks,
    read_knobs,
    read_study,
    sources,
)
from bbnet.study.sparsity import Sparsity
from bbnet.tasks.face.settings import FacePack, Weights
from bbnet.tasks.settings import PublishedPack

REPOSITORY = Path(__file__).parents[2]
LAWS = ("log_odds", "linear", "uniform", "shuffled", "inverted", "traffic")
FILE = Path("studies/case.yaml")
SOURCE_OF_KNOBS = "config.yaml or --config"


@pytest.fixture
def refusal(write_study):
    """The one line with which a study is refused."""

    def message(content: str | dict) -> str:
        path = write_study(content)
        with pytest.raises(ConfigError) as refused:
            read_study("bad", path.parent)
        text = str(refused.value)
        assert text.startswith(f"{path}: ")
        assert text.splitlines() == [text]
        return text.removeprefix(f"{path}: ")

    return message


def knob_refusal(config: dict) -> str:
    with pytest.raises(ConfigError) as refused:
        read_knobs(config)
    text = str(refused.value)
    assert text.startswith(f"{SOURCE_OF_KNOBS}: ")
    assert text.splitlines() == [text]
    return text.removeprefix(f"{SOURCE_OF_KNOBS}: ")


def writing_refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        check_writable("data_dir", folder)
    text = str(refused.value)
    assert text.splitlines() == [text]
    return text


@pytest.mark.parametrize("path", sorted((REPOSITORY / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_study_is_valid(path):
    assert read_study(path.stem, path.parent).seeds


def test_the_shipped_knobs_are_valid_and_name_every_knob():
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    assert set(config) == set(Knobs.model_fields)
    assert read_knobs(config).study == "demo"


def test_the_base_study_of_these_tests_is_valid(base, write_study):
    assert read_study("bad", write_study(base).parent).budgets == ["0.20", "0.50"]


# What each key says of what is allowed.


@pytest.mark.parametrize(
    ("key", "value", "named", "allowed"),
    [
        (
            "methods.sp_in.algorithm",
            "budgeted_brodcast",
            "methods.sp_in.algorithm",
            ("budgeted_broadcast", "magnitude"),
        ),
        ("methods.sp_in.algorithm", None, "methods.sp_in.algorithm", ("budgeted_broadcast",)),
        ("methods.sp_in.law", "logodds", "methods.sp_in.law", LAWS),
        ("methods.sp_in.side", "left", "methods.sp_in.side", ("in", "out", "both")),
        ("methods.sp_in.gain", 0, "methods.sp_in.gain", ("greater than 0",)),
        ("methods.sp_in.silent", "loud", "methods.sp_in.silent", ("smallest", "literal")),
        ("methods.magnitude.side", "up", "methods.magnitude.side", ("in", "out", "both")),
        ("tasks.change.data.pack", "levir", "tasks.change.data.pack", ("aerial_scenes", "levir_cd")),
        ("tasks.change.data.size", "big", "tasks.change.data.size", ("integer",)),
        ("tasks.change.data.unchanged", 1.0, "tasks.change.data.unchanged", ("less than 1",)),
        ("tasks.change.slabs", "narrow", "tasks.change.slabs", ("paper", "wide")),
        ("tasks.change.models.small.widths", [], "tasks.change.models.small.widths", ("at least 1",)),
        (
            "tasks.change.models.small.widths",
            [8, 0],
            "tasks.change.models.small.widths.1",
            ("greater than or equal to 1",),
        ),
        ("tasks.change.models", {}, "tasks.change.models", ("at least 1",)),
        ("tasks.change.training.optimizer", "lion", "tasks.change.training.optimizer", ("adamw", "sgd")),
        ("tasks.change.training.learning_rate", 0, "tasks.change.training.learning_rate", ("greater than 0",)),
        ("tasks.change.training.warm_up_epochs", 4, "tasks.change.training", ("warm_up_epochs 4", "below epochs 4")),
        ("tasks.change.training.devices", 0, "tasks.change.training.devices", ("greater than or equal to 1",)),
        ("tasks.change.training.devices", 5, "tasks.change.training", ("devices 5", "batch_size 4")),
        ("sparsity.rescale", "square", "sparsity.rescale", ("none", "sqrt", "energy")),
        ("sparsity.ramp_end", 0.9, "sparsity", ("ramp_end 0.9", "freeze 0.75")),
        ("sparsity.freeze", 1.0, "sparsity.freeze", ("0.95",)),
        ("sparsity.every", 0, "sparsity.every", ("greater than or equal to 1",)),
        ("cpu_threads", 0, "cpu_threads", ("greater than or equal to 1",)),
        ("seeds", [], "seeds", ("at least 1",)),
        ("seeds", 3, "seeds", ("list",)),
        ("seeds", [-1], "seeds.0", ("greater than or equal to 0",)),
        ("seeds", [0, "one"], "seeds.1", ("integer",)),
        ("budgets", [], "budgets", ("at least 1",)),
        ("methods", {}, "methods", ("dense",)),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(with_key, refusal, key, value, named, allowed):
    message = refusal(with_key(key, value))
    assert message.startswith(f"{named}: ")
    assert all(word in message for word in allowed)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("budget", "budgets"),
        ("seed", "seeds"),
        ("cpu_thread", "cpu_threads"),
        ("sparsity.rescal", "rescale"),
        ("methods.sp_in.lwa", "law"),
        ("methods.sp_in.gian", "gain"),
        ("methods.magnitude.sides", "side"),
        ("tasks.chnage", "change"),
        ("tasks.change.slab", "slabs"),
        ("tasks.change.data.sise", "size"),
        ("tasks.change.models.small.width", "widths"),
        ("tasks.change.training.epoch", "epochs"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_known_name(with_key, refusal, key, nearest):
    message = refusal(with_key(key, 1))
    assert message.startswith(f"{key}: unknown key; did you mean '{nearest}'? allowed: ")


def test_weights_that_are_rescaled_cannot_be_binary(with_key, refusal):
    content = with_key("sparsity.rescale", "sqrt")
    content["methods"]["binary"] = {"algorithm": "dense", "weights": "binary"}
    Study.model_validate(content)  # without masks there is nothing to rescale
    content["methods"]["ternary"] = {"algorithm": "magnitude", "weights": "binary"}
    assert "methods.ternary: rescaling has no effect on weights binary" in refusal(content)


@pytest.mark.parametrize(
    ("method", "sparsity", "said"),
    [
        ({"algorithm": "magnitude"}, {}, ": names no setting, allowed: rescale, ramp_end, freeze, every"),
        ({"algorithm": "magnitude"}, {"evry": 20}, ".evry: unknown key; did you mean 'every'? allowed: "),
        ({"algorithm": "magnitude"}, {"every": 0}, ".every: input should be greater than or equal to 1, found 0"),
        ({"algorithm": "magnitude"}, {"rescale": "none"}, ".rescale: none is that of the study already"),
        ({"algorithm": "magnitude"}, {"ramp_end": 0.8}, ": ramp_end 0.8 must not exceed freeze 0.75"),
        ({"algorithm": "magnitude"}, {"freeze": 0.3}, ": ramp_end 0.4 must not exceed freeze 0.3"),
        ({"algorithm": "topk"}, {"rescale": "sqrt"}, ".rescale: has no effect on this method"),
        ({"algorithm": "rigl"}, {"ramp_end": 0.2}, ".ramp_end: has no effect on this method"),
        ({"algorithm": "random"}, {"every": 20}, ".every: has no effect on this method"),
        ({"algorithm": "magnitude", "weights": "binary"}, {"rescale": "sqrt"}, "no effect on weights binary"),
        ({"algorithm": "dense"}, {"every": 20}, ": unknown key; "),
    ],
)
def test_own_settings_of_the_sparse_phase_that_are_wrong_or_useless_are_refused(base, refusal, method, sparsity, said):
    base["methods"]["own"] = method | {"sparsity": sparsity}
    message = refusal(base)
    assert message.startswith("methods.own")
    assert said in message


@pytest.mark.parametrize(
    ("method", "sparsity"),
    [
        ({"algorithm": "magnitude"}, {"every": 20}),
        ({"algorithm": "topk"}, {"ramp_end": 0, "every": 3}),
        ({"algorithm": "rigl", "ramp": True}, {"ramp_end": 0.2}),
        ({"algorithm": "rigl"}, {"freeze": 0.3, "ramp_end": 0.1}),  # without the second, the ramp would exceed it
        ({"algorithm": "random"}, {"rescale": "energy"}),
    ],
)
def test_own_settings_of_the_sparse_phase_replace_those_of_the_study_one_by_one(base, write_study, method, sparsity):
    base["methods"]["own"] = method | {"sparsity": sparsity}
    path = write_study(base)
    study = read_study(path.stem, path.parent)
    assert study.sparsity_of(study.methods["own"]) == Sparsity(**sparsity)
    assert study.sparsity_of(study.methods["dense"]) == study.sparsity_of(study.methods["sp_in"]) == Sparsity()
    assert Study.model_validate_json(study.model_dump_json(exclude_unset=True)).methods == study.methods


def test_weights_are_selected_after_the_latest_freeze_of_the_task(base):
    def latest(**changed) -> dict:
        return Study(**base | changed).latest_freeze("change")

    assert latest() == {"warm_up_epochs": 1, "freeze": 0.75}
    early, late = ({"algorithm": "magnitude", "sparsity": {"freeze": freeze}} for freeze in (0.5, 0.9))
    assert latest(methods=base["methods"] | {"early": early}) == latest()
    assert latest(methods=base["methods"] | {"early": early, "late": late}) == {"warm_up_epochs": 1, "freeze": 0.9}
    # A model with 2 of 4 warm-up epochs freezes after 2 + .75 * 2 = 3.5 epochs, the other one after 1 + .75 * 3 = 3.25.
    base["tasks"]["change"]["models"]["later"] = {"widths": [8, 16], "warm_up_epochs": 2}
    assert latest() == {"warm_up_epochs": 2, "freeze": 0.75}
    assert latest(methods=base["methods"] | {"late": late}) == {"warm_up_epochs": 2, "freeze": 0.9}
    # Where the method with the latest freeze does not run, it does not count.
    base["only"] = {"change": {"later": ["dense", "sp_in"]}}
    assert latest(methods=base["methods"] | {"late": late}) == {"warm_up_epochs": 1, "freeze": 0.9}


def test_refreshes_of_each_method_and_model_must_fit_into_the_steps(base):
    """An epoch has 8 steps, so that 24 are in the sparse phase, with a freeze after 18."""
    base["sparsity"] = {"every": 2}
    base["methods"]["rare"] = {"algorithm": "magnitude", "sparsity": {"every": 5}}
    check_schedules(Study(**base), FILE)
    base["methods"]["rare"]["sparsity"] = {"every": 6}
    with pytest.raises(ConfigError, match=r"methods\.rare\.sparsity and tasks\.change\.training: only 2 refreshes"):
        check_schedules(Study(**base), FILE)
    del base["methods"]["rare"]
    # Of the 8 steps that are left to this model, masks freeze after 6.
    base["tasks"]["change"]["models"]["late"] = {"widths": [8, 16], "warm_up_epochs": 3}
    with pytest.raises(ConfigError, match=r"sparsity, tasks\.change\.models\.late\.warm_up_epochs and tasks"):
        check_schedules(Study(**base), FILE)
    base["sparsity"] = {"every": 1}
    check_schedules(Study(**base), FILE)


def test_a_model_has_its_own_warm_up_below_all_epochs(with_key, refusal, study):
    found = study("tasks.change.models.small.warm_up_epochs", 3).task_settings()["change"]
    assert (found.training_of("small").warm_up_epochs, found.training_of("small").epochs) == (3, 4)
    message = refusal(with_key("tasks.change.models.small.warm_up_epochs", 4))
    assert message == "tasks.change: models.small: warm_up_epochs 4 must be below epochs 4"


@pytest.mark.parametrize(("k_min", "fine"), [(0, True), (0.05, True), (0.12, True), (0.13, False), (0.3, False)])
def test_the_smallest_degree_must_fit_the_smallest_budget(with_key, refusal, k_min, fine):
    """The fans are 8, 16, 24 and 48. At budget .15 a unit of fan 8 keeps 1.2, and ceil(.13 * 8) is 2."""
    content = with_key("methods.sp_in.k_min", k_min) | {"budgets": [0.15, 0.5]}
    if fine:
        Study(**content)
    else:
        assert "methods.sp_in: k_min" in refusal(content)


@pytest.mark.parametrize("reference", ["dense", "novel"])
def test_the_reference_is_a_sparse_method_of_the_study(base, refusal, reference):
    message = refusal(base | {"reference": reference})
    assert message == f"reference: {reference} is no sparse method of the study, allowed: sp_in, sp_out, magnitude"


@pytest.mark.parametrize("key", ["binary_layers", "binary_scale", "latent_decay"])
def test_keys_of_binary_weights_are_refused_for_float_ones(with_key, refusal, key):
    value = {"binary_layers": "all", "binary_scale": "one", "latent_decay": True}[key]
    assert f"{key} {value} is not allowed with weights float" in refusal(with_key(f"methods.magnitude.{key}", value))


def test_a_parameter_of_another_algorithm_is_refused_with_those_allowed(with_key, refusal):
    message = refusal(with_key("methods.magnitude.law", "linear"))
    assert message.startswith("methods.magnitude.law: unknown key; ")
    assert message.endswith(
        "allowed: algorithm, binary_layers, binary_scale, distribution, latent_decay, one_shot, pattern, side, "
        "sparsity, weights"
    )


@pytest.mark.parametrize(
    "method, message",
    [
        ({"pattern": "2:5"}, "pattern 2:5 needs 2/5, below 1, among the budgets"),
        ({"pattern": "4:4"}, "pattern 4:4 needs 4/4, below 1, among the budgets"),
        ({"pattern": "8:16"}, "pattern 8:16 does not fit fan 8 of tasks.change"),
        ({"pattern": "2:4", "distribution": "global"}, "pattern 2:4 needs distribution uniform"),
        ({"pattern": "half"}, "methods.magnitude.pattern: "),
    ],
    ids=lambda value: str(value.get("pattern")) if isinstance(value, dict) else "",
)
def test_a_pattern_that_does_not_fit_the_study_is_refused(with_key, refusal, method, message):
    assert message in refusal(with_key("methods.magnitude", {"algorithm": "magnitude"} | method))


def test_a_pattern_needs_no_quotes(base, write_study):
    """YAML 1.1 takes 2:4 for the number 124, to the base of 60."""
    text = yaml.safe_dump(base | {"budgets": [0.5]}).replace(
        "algorithm: magnitude", "algorithm: magnitude\n    pattern: 2:4"
    )
    path = write_study(text)
    assert read_study(path.stem, path.parent).methods["magnitude"].pattern == "2:4"


@pytest.mark.parametrize(
    ("key", "written", "read"),
    [
        ("seeds", "[010, 011, 08, 0]", [10, 11, 8, 0]),
        ("cpu_threads", "012", 12),
        ("sparsity", "{every: +0010}", Sparsity(every=10)),
        ("budgets", "[00.50, 1]", ["0.50", "1.00"]),
    ],
)
def test_a_number_with_zeros_before_it_is_decimal(base, write_study, key, written, read):
    """YAML 1.1 takes 010 for the octal number 8."""
    base.pop(key, None)
    path = write_study(f"{yaml.safe_dump(base)}{key}: {written}\n")
    assert getattr(read_study(path.stem, path.parent), key) == read


def test_epochs_and_tasks_are_read_so_too(base, write_study):
    text = yaml.safe_dump(base).replace("epochs: 4", "epochs: 012").replace("train: 8", "train: 0010")
    change = read_study("bad", write_study(text).parent).tasks.change
    assert (change.training.epochs, change.data.train) == (12, 10)


@pytest.mark.parametrize("number", ["0o10", "0x10", "0b11", "1_000", '!!int "0x10"'])
def test_a_number_in_another_base_is_refused(base, write_study, refusal, number):
    base.pop("seeds")
    message = refusal(f"{yaml.safe_dump(base)}seeds: [{number}]\n")
    assert "seeds.0: input should be a valid integer" in message or "line" in message


def test_equal_seeds_written_differently_are_refused(base, refusal):
    base.pop("seeds")
    assert "10 given twice" in refusal(f"{yaml.safe_dump(base)}seeds: [10, 010]\n")


def test_dense_has_no_side(with_key, refusal):
    message = refusal(with_key("methods.dense.side", "in"))
    assert (
        message
        == "methods.dense.side: unknown key; allowed: algorithm, binary_layers, binary_scale, latent_decay, weights"
    )


def test_several_errors_stand_in_one_line(with_key, refusal):
    content = with_key("seeds", [])
    content["cpu_threads"] = 0
    message = refusal(content)
    assert "seeds: " in message
    assert "cpu_threads: " in message


@pytest.mark.parametrize(
    "key",
    [
        "seeds",
        "budgets",
        "methods",
        "tasks",
        "methods.sp_in.algorithm",
        "tasks.change.data",
        "tasks.change.data.pack",
        "tasks.change.models",
        "tasks.change.training.epochs",
    ],
)
def test_a_missing_key_is_named(with_key, refusal, key):
    assert refusal(with_key(key, ...)) == f"{key}: is missing"


@pytest.mark.parametrize(
    "key",
    [
        "seeds",
        "budgets",
        "sparsity",
        "methods",
        "methods.sp_in",
        "tasks",
        "tasks.change",
        "tasks.change.data",
        "tasks.change.models",
        "tasks.change.models.small",
        "tasks.change.training",
    ],
)
@pytest.mark.parametrize("value", [None, [], "text"])
def test_a_section_of_another_kind_is_refused_by_its_key(with_key, refusal, key, value):
    assert refusal(with_key(key, value)).startswith(f"{key}: ")


# Budgets, seeds and labels.


@pytest.mark.parametrize("budget", [0, 0.0, 1.2, 0.04, "0.04", -0.5, 100, float("inf")])
def test_a_budget_out_of_range_is_refused_with_the_range(with_key, refusal, budget):
    message = refusal(with_key("budgets", [0.2, budget]))
    assert message.startswith("budgets.1: ")
    assert "[0.05, 1]" in message


@pytest.mark.parametrize("budget", [0.205, "0.205", "0.205\n", 0.5000001, 1e-9])
def test_a_budget_of_more_than_two_decimals_is_refused(with_key, refusal, budget):
    message = refusal(with_key("budgets", [budget]))
    assert message.startswith("budgets.0: ")
    assert "two decimals" in message or "[0.05, 1]" in message


@pytest.mark.parametrize("budget", ["half", "", None, True, [0.2], {"share": 0.2}, "20 %", "0,2", float("nan")])
def test_a_budget_that_is_no_number_is_refused(with_key, refusal, budget):
    message = refusal(with_key("budgets", [budget]))
    assert message.startswith("budgets.0: ")
    assert "not a number" in message


@pytest.mark.parametrize(
    ("budget", "canonical"),
    [(0.05, "0.05"), (0.2, "0.20"), ("0.20", "0.20"), ("0.2", "0.20"), (0.50, "0.50"), (1, "1.00"), ("1e-1", "0.10")],
)
def test_a_budget_has_one_canonical_form(budget, canonical):
    assert canonical_budget(budget) == canonical


def test_every_budget_of_two_decimals_keeps_its_value():
    hundredths = range(5, 101)
    assert [canonical_budget(count / 100) for count in hundredths] == [
        str(Decimal(count) / 100 + Decimal("0.00")) for count in hundredths
    ]


@pytest.mark.parametrize("budgets", [[0.2, 0.2], [0.2, "0.20"], ["0.2", "0.20"], [1, 0.5, 1.0]])
def test_equal_budgets_are_refused_however_they_are_written(with_key, refusal, budgets):
    message = refusal(with_key("budgets", budgets))
    assert message.startswith("budgets: ")
    assert f"{float(budgets[0]):.2f}" in message
    assert "twice" in message


@pytest.mark.parametrize("seeds", [[0, 1, 0], [7, 7]])
def test_equal_seeds_are_refused(with_key, refusal, seeds):
    message = refusal(with_key("seeds", seeds))
    assert message.startswith("seeds: ")
    assert f"{seeds[0]} given twice" in message


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("seeds: [0]\nseeds: [1]\n", "seeds"),
        ("methods:\n  sp_in: {algorithm: dense}\n  sp_in: {algorithm: magnitude}\n", "sp_in"),
        ("tasks:\n  change: {tile: 32, tile: 64}\n", "tile"),
    ],
)
def test_equal_labels_are_refused(refusal, text, twice):
    message = refusal(text)
    assert f"'{twice}' given twice" in message
    assert "line" in message


@pytest.mark.parametrize("label", ["SP-in", "sp in", "1st", "", "sp/in", "../x", "sp_in\n"])
def test_a_label_that_cannot_be_a_folder_is_refused(with_key, refusal, base, label):
    base["methods"][label] = {"algorithm": "magnitude"}
    message = refusal(base)
    assert message.startswith("methods.")
    assert "match pattern" in message


@pytest.mark.parametrize("key", [1, None, 2.5, True])
def test_a_label_that_is_no_text_is_refused(refusal, base, key):
    base["methods"][key] = {"algorithm": "magnitude"}
    message = refusal(base)
    assert message.startswith("methods.")
    assert "valid string" in message


@pytest.mark.parametrize(
    "methods",
    [
        {"sp_in": {"algorithm": "budgeted_broadcast"}},
        {"reference": {"algorithm": "dense"}},
        {"dense": {"algorithm": "magnitude"}},
        {"dense": {"algorithm": "dense"}, "again": {"algorithm": "dense"}},
    ],
    ids=["none", "under another label", "another algorithm under its label", "two"],
)
def test_a_study_needs_exactly_one_dense_method(with_key, refusal, methods):
    message = refusal(with_key("methods", methods))
    assert message.startswith("methods: ")
    assert "labelled 'dense'" in message


def test_a_study_needs_a_task(with_key, refusal):
    assert (
        refusal(with_key("tasks", {}))
        == "tasks: needs at least one task, allowed: asr, change, classification, detection, face, language, logic"
    )


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"asr": {"small": ["dense"]}}, "only.asr: no such task in this study, allowed: change"),
        ({"change": {"large": ["dense"]}}, "only.change.large: no such model of the task, allowed: small"),
        (
            {"change": {"small": ["dense", "rigl"]}},
            "only.change.small: rigl is no method of this study, allowed: dense, sp_in, sp_out, magnitude, with dense",
        ),
        (
            {"change": {"small": ["sp_in"]}},
            "only.change.small: dense is missing, allowed: dense, sp_in, sp_out, magnitude, with dense",
        ),
    ],
)
def test_only_names_what_the_study_has(with_key, refusal, only, message):
    assert message in refusal(with_key("only", only))


TINY = {"architecture": "cifar_resnet", "depth": 8, "width": 8}
OBJECTS = {
    "data": {"pack": "rendered_objects", "train": 40, "val": 10, "test": 10},
    "models": {"first": TINY},
    "training": {"epochs": 4, "warm_up_epochs": 1, "batch_size": 8, "learning_rate": 0.01},
}
FACE = {"architecture": "small", "widths": [8], "blocks": [1]}
FACES = {
    "data": {
        **{"pack": "rendered_faces", "size": 24, "identities": 4, "train": 24},
        **{"val": 1, "test": 1, "gallery": 2, "probes": 1, "strangers": 1},
    },
    "size": 24,
    "models": {"face": FACE},
    "training": OBJECTS["training"],
}


@pytest.mark.parametrize(
    ("weights", "key", "message"),
    [
        ({"run": "classification/second"}, "run", "classification/second is no model of this study, allowed: change"),
        ({"run": "asr/first"}, "run", "asr/first is no model of this study, allowed: change/small"),
        ({"run": "change/small"}, "run", "no model may start from itself: change/small from change/small"),
        ({"run": "first"}, "run", "string should match pattern"),
        ({"run": 3}, "run", "input should be a valid string"),
        ({"runs": "classification/first"}, "runs", "unknown key; did you mean 'run'? allowed: run"),
        ({"pack": "imagenet_resnet101"}, "pack", "unknown key"),
        ("classification/first", None, "must be a map of keys"),
    ],
)
def test_a_model_starts_from_another_one_of_the_study(with_key, refusal, weights, key, message):
    content = with_key("tasks.classification", OBJECTS)
    content["tasks"]["change"]["models"]["small"]["weights"] = weights
    place = "tasks.change.models.small.weights"
    assert refusal(content).startswith(f"{place}: {message}" if key is None else f"{place}.{key}: {message}")


def test_a_chain_that_leads_back_is_refused(with_key, refusal):
    content = with_key(
        "tasks.classification", OBJECTS | {"models": {"first": TINY | {"weights": {"run": "face/face"}}}}
    )
    content["tasks"]["face"] = FACES
    assert sources(Study.model_validate(content)) == {("classification", "first"): ("face", "face")}
    content["tasks"]["face"] = FACES | {"models": {"face": FACE | {"weights": {"run": "change/small"}}}}
    content["tasks"]["change"]["models"]["small"]["weights"] = {"run": "classification/first"}
    assert "no model may start from itself: change/small from classification/first from face/face" in refusal(content)


def test_a_source_needs_a_dense_run_of_every_seed(with_key, refusal):
    content = with_key("tasks.classification", OBJECTS)
    content["tasks"]["change"]["models"]["small"]["weights"] = {"run": "classification/first"}
    assert Study.model_validate(
        content | {"only": {"classification": {"first": ["dense"]}}, "first_seeds": {"change": 1}}
    )
    assert "only.classification.first: dense is missing" in refusal(
        content | {"only": {"classification": {"first": ["sp_in"]}}}
    )
    assert "classification/first runs 1 seeds, and change/small needs 2" in refusal(
        content | {"first_seeds": {"classification": 1}}
    )
    with pytest.raises(ConfigError, match="change/small starts from classification/first, so classification must be"):
        of_tasks(Study.model_validate(content), "change")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"pack": "imagenet_resnet101"},
            "weights of pack imagenet_resnet101 are only allowed with architecture resnet101",
        ),
        ({"pack": "other"}, "tasks.face.models.face.weights.pack: input should be 'imagenet_resnet101', found 'other'"),
        ({"run": "first"}, "tasks.face.models.face.weights.run: string should match pattern"),
        ({"run": "change/small", "path": "x"}, "tasks.face.models.face.weights.path: unknown key; allowed: run"),
    ],
)
def test_a_face_starts_from_a_pack_or_a_run(with_key, refusal, weights, message):
    faces = FACES | {"models": {"face": FACE | {"weights": weights}}}
    assert message in refusal(with_key("tasks.face", faces))


@pytest.mark.parametrize(
    ("first_seeds", "message"),
    [
        ({"asr": 1}, "first_seeds.asr: no such task in this study, allowed: change"),
        ({"change": 100}, "first_seeds.change: 100 is more than the"),
        ({"change": 0}, "first_seeds.change"),
    ],
)
def test_first_seeds_are_those_of_the_study(with_key, refusal, first_seeds, message):
    assert message in refusal(with_key("first_seeds", first_seeds))


# What can be known of the data before any job starts.


def test_a_tile_that_the_levels_cannot_halve_is_refused(with_key, refusal):
    message = refusal(with_key("tasks.change.models.small.widths", [8] * 6))
    assert message.startswith("tasks.change: ")
    assert "tile 32 must be a multiple of 64" in message
    assert "small" in message


def test_a_size_that_the_tile_does_not_divide_is_refused(with_key, refusal):
    message = refusal(with_key("tasks.change.data.size", 80))
    assert message.startswith("tasks.change: ")
    assert "data.size 80 must be a multiple of tile 32" in message


def test_a_batch_larger_than_the_training_data_is_refused(with_key, refusal):
    message = refusal(with_key("tasks.change.training.batch_size", 33))
    assert message.startswith("tasks.change: ")
    assert "batch_size 33 exceeds the 32 training tiles" in message


def test_a_batch_as_large_as_the_training_data_is_accepted(study):
    assert study("tasks.change.training.batch_size", 32).tasks.change.training.batch_size == 32


# The baseline of a task.


def test_a_baseline_is_a_model_of_its_task(with_key, refusal, study):
    assert study("tasks.change.baseline", "small").tasks.change.baseline == "small"
    assert study().tasks.change.baseline is None
    message = refusal(with_key("tasks.change.baseline", "large"))
    assert message == "tasks.change: baseline 'large' is not a model of the task, allowed: small"
    assert refusal(with_key("tasks.change.baseline", 3)).startswith("tasks.change.baseline: ")


@pytest.mark.parametrize(
    ("baseline", "beside", "message"),
    [
        ("small", {"small": "other"}, "small: other must be two different models besides the baseline, allowed: other"),
        ("small", {"other": "other"}, "other: other must be two different models besides the baseline, allowed: other"),
        ("small", {"other": "third"}, "other: third must be two different models besides the baseline, allowed: other"),
        (None, {"other": "small"}, "beside needs a baseline"),
    ],
)
def test_two_models_beside_each_other_are_others_than_the_baseline(with_key, refusal, baseline, beside, message):
    models = {"small": {"widths": [8, 16]}, "other": {"widths": [8, 8]}}
    data = with_key("tasks.change.models", models)
    data["tasks"]["change"] |= {"baseline": baseline, "beside": beside}
    assert message in refusal(data)


@pytest.mark.parametrize("task", ["asr", "detection", "language"])
def test_tasks_whose_splits_cannot_be_divided_take_one_device(refusal, task):
    study = yaml.safe_load((REPOSITORY / "studies" / "smoke.yaml").read_text(encoding="utf-8"))
    study["tasks"][task]["training"]["devices"] = 2
    assert refusal(study).startswith(f"tasks.{task}.training.devices: ")


# Diagnostics.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seeds", [7], "diagnostics.seeds: 7 is not in the study, allowed: 0, 1"),
        ("budgets", [0.3], "diagnostics.budgets: 0.30 is not in the study, allowed: 0.20, 0.50, 1.00"),
        ("methods", ["sp"], "diagnostics.methods: sp is not in the study, allowed: dense, sp_in, sp_out, magnitude"),
        ("every", 61, "diagnostics: every 61 must not exceed steps 60"),
        ("steps", 0, "diagnostics.steps: input should be greater than or equal to 1, found 0"),
        ("layers", [], "diagnostics.layers: list should have at least 1 item after validation, not 0, found []"),
        ("strikt", True, "diagnostics.strikt: unknown key; did you mean 'strict'?"),
    ],
)
def test_diagnostics_of_what_is_not_in_the_study_are_refused(base, refusal, key, value, message):
    assert refusal(base | {"diagnostics": {key: value}}).startswith(message)


def test_diagnostics_are_part_of_no_dump(base):
    asked = Study(**base, diagnostics={"steps": 3, "every": 1})
    assert asked.diagnostics.steps == 3
    assert asked.model_dump() == Study(**base).model_dump()


# Files.


def test_a_missing_study_is_refused_with_the_known_ones(tmp_path):
    for name in ("demo", "paper"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(ConfigError) as refused:
        read_study("papre", tmp_path)
    assert str(refused.value).splitlines() == [str(refused.value)]
    assert str(tmp_path / "papre.yaml") in str(refused.value)
    assert str(refused.value).endswith("demo, paper")


@pytest.mark.parametrize(
    "text",
    [
        "seeds: [0, 1\nbudgets: 3",
        "seeds:\n\t- 0",
        "a: b: c",
        "%",
        "seeds: *unknown",
        "{[a]: 1}",
        "? {a: 1}\n: 2",
        "x: !!python/object:os.system 1",
    ],
)
def test_yaml_that_does_not_parse_is_refused(refusal, text):
    assert refusal(text).startswith("not valid YAML: ")


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "list"), ("", "an empty file"), ("demo", "str"), ("3", "int")]
)
def test_a_study_that_is_no_map_is_refused(refusal, text, kind):
    assert refusal(text) == f"must be a map of keys, found {kind}"


def test_a_study_whose_keys_are_no_text_is_refused(refusal):
    assert refusal("1: 2\n").startswith("1: unknown key")


def test_a_study_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"description: caf\xe9\n")
    with pytest.raises(ConfigError) as refused:
        read_study("bad", tmp_path)
    assert str(tmp_path / "bad.yaml") in str(refused.value)


def test_a_key_with_a_line_break_is_still_refused_in_one_line(refusal, base):
    base["two\nlines"] = 1
    assert "unknown key" in refusal(base)


# Knobs.


@pytest.mark.parametrize("knob", ["compile", "resident"])
@pytest.mark.parametrize(
    ("given", "found"), [("auto", "auto"), ("on", "on"), ("off", "off"), (True, "on"), (False, "off")]
)
def test_a_switch_may_be_what_yaml_makes_of_on_and_off(knob, given, found):
    assert getattr(read_knobs({knob: given}), knob) == found


def test_knobs_arrive_as_strings_or_as_yaml_values():
    assert read_knobs({"study": "paper", "device": "cpu"}) == Knobs(study="paper", device="cpu")
    assert read_knobs({"gpu_slots": 2, "checkpoint_minutes": 0.5}).gpu_slots == 2


@pytest.mark.parametrize("knob", ["data_dir", "results_dir"])
@pytest.mark.parametrize("written", ["2024_01", "010", "2024", "1e3", "1.50", "1:30", "nan", "True", "yes", "2024-1-1"])
def test_a_folder_is_what_was_written_or_refused_with_a_way_to_write_it(tmp_path, knob, written):
    """On the command line, as Snakemake reads it, and in config.yaml."""
    file = tmp_path / "config.yaml"
    for name in (written, f"./{written}"):
        file.write_text(f"{knob}: {name}\n")
        for config in (parse_config([f"{knob}={name}"]), load_configfile(file)):
            if isinstance(config[knob], str):
                assert getattr(read_knobs(config), knob) == written
            else:
                assert name == written
                message = knob_refusal(config)
                assert message.startswith(f"{knob}: was read as the ")
                assert "write ./ in front of the name" in message


@pytest.mark.parametrize(
    ("knob", "value", "allowed"),
    [
        ("device", "gpu", ("auto", "cpu", "cuda")),
        ("device", "CPU", ("auto", "cpu", "cuda")),
        ("results_from", "shipped", ("runs", "reference")),
        ("cells", "some", ("all", "done")),
        ("cells", True, ("all", "done")),
        ("study", "../demo", ("pattern",)),
        ("study", "demo.yaml", ("pattern",)),
        ("study", 1, ("pattern",)),
        ("data_dir", "", ("at least 1 character",)),
    ],
)
def test_a_bad_knob_is_named_with_what_is_allowed(knob, value, allowed):
    message = knob_refusal({knob: value})
    assert message.startswith(f"{knob}: ")
    assert all(word in message for word in allowed)


@pytest.mark.parametrize(("knob", "nearest"), [("devcie", "device"), ("datadir", "data_dir"), ("studies", "study")])
def test_a_misspelt_knob_is_refused_with_the_nearest(knob, nearest):
    assert knob_refusal({knob: "x"}).startswith(f"{knob}: unknown key; did you mean '{nearest}'?")


@pytest.mark.parametrize("knob", sorted(Knobs.model_fields))
def test_a_knob_without_a_value_is_refused(knob):
    """`data_dir:` in config.yaml, or `--config data_dir=`, is no folder called None."""
    assert knob_refusal({knob: None}).startswith(f"{knob}: ")


def test_a_knob_whose_name_is_no_text_is_refused():
    assert "1" in knob_refusal({1: "x"})


@pytest.fixture
def many_names(tmp_path, monkeypatch):
    """A folder to work in, with a link to itself elsewhere, and where `~` and variables lead to it."""
    work = tmp_path / "work"
    for folder in (work / "sub", tmp_path / "away" / "deep"):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(work)
    (tmp_path / "jump").symlink_to(tmp_path / "away" / "deep")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", f"{work}/")
    return tmp_path


INSIDE = [
    "out",
    "out/",
    "./out",
    ".//out//",
    "sub/../out",
    "../work/out",
    "~/work/out",
    "$HOME/work/out/",
    "${SCRATCH}/out",
]


@pytest.mark.parametrize("knob", ["data_dir", "results_dir"])
@pytest.mark.parametrize("spelling", [*INSIDE, "{}/work/out", "{}/link/out", "{}/link/../work/out"])
def test_a_folder_has_one_name_however_it_is_written(many_names, knob, spelling):
    written = spelling.replace("{}", str(many_names))
    assert getattr(read_knobs({knob: written}), knob) == "out"


@pytest.mark.parametrize(
    "spelling", ["../away", "~/away/", "$HOME//away", "{}/./away", "/{}/away", "{}/jump/..", "../jump/.."]
)
def test_a_folder_elsewhere_has_its_absolute_name(many_names, spelling):
    found = read_knobs({"results_dir": spelling.replace("{}", str(many_names))})
    assert found.results_dir == str(many_names / "away")
    assert Knobs(**found.model_dump()) == found


def test_a_link_keeps_its_name_and_the_folder_itself_is_a_dot(many_names):
    Path("linked").symlink_to(many_names / "away")
    assert read_knobs({"results_dir": "./linked/"}).results_dir == "linked"
    assert read_knobs({"results_dir": str(many_names / "work")}).results_dir == "."


@pytest.mark.parametrize("spelling", ["$NOT_SET/results", "${NOT_SET}", "~nobody.of.this.name/results"])
def test_a_variable_that_is_not_set_and_an_unknown_user_make_no_folder(spelling):
    assert repr(spelling) in knob_refusal({"results_dir": spelling})


@pytest.mark.parametrize(
    "spelling",
    ["{}/pack", "{}/pack/", "/{}//./pack", "$HOME/pack", "${HOME}/pack/", "~/pack", "../pack", "~/away/../pack"],
)
@pytest.mark.parametrize("settings", [PublishedPack, FacePack, Weights], ids=lambda settings: settings.__name__)
def test_a_path_of_data_is_the_same_data_however_it_is_written(many_names, settings, spelling):
    pack = {} if settings is PublishedPack else {"pack": "faces" if settings is FacePack else "imagenet_resnet101"}
    assert settings(path=spelling.replace("{}", str(many_names)), **pack).path == str(many_names / "pack")
    for inside in ("pack", "./pack/", "$SCRATCH/pack", "../link/pack", str(many_names / "work" / "pack")):
        assert settings(path=inside, **pack).path == "pack"


# Folders that must be writable.


def test_a_folder_that_can_be_made_is_accepted_and_not_made(tmp_path):
    check_writable("data_dir", tmp_path / "a" / "b")
    check_writable("data_dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("data_dir", Path("data"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_file_in_the_way_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("kept")
    message = writing_refusal(file / below)
    assert str(file / below) in message
    assert file.read_text() == "kept"


@pytest.mark.parametrize("folder", ["/proc/data", "/proc/a/b"])
def test_a_read_only_place_is_refused(folder):
    message = writing_refusal(Path(folder))
    assert folder in message
    assert "/proc" in message


def test_a_name_that_no_file_system_takes_is_refused(tmp_path):
    assert "data_dir" in writing_refusal(tmp_path / ("x" * 300))


def test_the_settings_of_the_tasks_are_those_given(study):
    assert list(study().task_settings()) == ["change"]
    assert study().task_settings()["change"].tile == 32


def test_a_study_cannot_be_changed_after_reading(study):
    frozen = study()
    with pytest.raises(ValueError, match="frozen"):
        frozen.seeds = [3]
    assert isinstance(frozen, Study)


def test_a_budget_in_reach_of_no_slab_is_refused_with_the_smallest_that_is(with_key, refusal):
    message = refusal(with_key("budgets", [0.06, 0.5]))
    assert "budgets: 0.06 is in reach of no slab of tasks.change" in message
    assert "allowed from 0.07" in message
