"""Every wrong configuration is refused before any job, in one message with the key's path and what is allowed.

A case is one key of a valid study, or one knob, and what stands there instead, as a user would write it.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bbnet.study.config import ConfigError
from bbnet.study.workflow import open_workflow

REPOSITORY = Path(__file__).parents[2]
PARTS = ("Snakefile", "bbnet", "rules", "workflow_scripts", "profiles", "report", "docs")
KNOBS = {"study": "case", "device": "cpu"}

VALID = """
description: One key of this is wrong in each case.
seeds: [0, 1]
budgets: [0.25, 0.5]
cpu_threads: 1
deterministic: false
sparsity: {rescale: none, ramp_end: 0.4, freeze: 0.75, every: 2}
methods:
  dense: {algorithm: dense}
  sp_in: {algorithm: budgeted_broadcast, side: in, law: log_odds, gain: 0.1}
  magnitude: {algorithm: magnitude, side: in, pattern: "2:4"}
  rigl: {algorithm: rigl, side: in}
  topk: {algorithm: topk}
tasks:
  asr:
    data: {pack: spoken_words, train: 32, train_speakers: 4, val: 4, test: 8, speakers: 2, words: 20, unseen_words: 5, shortest: 2, longest: 4}
    tokens: {kind: characters}
    models:
      transformer: {width: 16, hidden: 32, encoder_layers: 1, decoder_layers: 1, heads: 2, stem_channels: 2}
    training: {epochs: 4, warm_up_epochs: 1, batch_seconds: 8, learning_rate: 1e-3}
  change:
    data: {pack: aerial_scenes, size: 64, train: 16, val: 4, test: 8}
    tile: 32
    models:
      tiny: {widths: [8, 16]}
    training: {epochs: 4, warm_up_epochs: 1, batch_size: 8, learning_rate: 0.003, betas: [0.9, 0.98], clip_norm: 1}
  classification:
    data: {pack: rendered_objects, train: 40, val: 10, test: 10}
    models:
      resnet: {architecture: cifar_resnet, depth: 8, width: 8}
    training: {epochs: 4, warm_up_epochs: 1, batch_size: 8, learning_rate: 0.003}
  face:
    data: {pack: rendered_faces, size: 24, identities: 4, train: 64, val: 2, test: 3, gallery: 3, probes: 2, strangers: 2}
    size: 24
    models:
      resnet: {architecture: small, widths: [8, 16], blocks: [1, 1]}
    training: {epochs: 4, warm_up_epochs: 1, batch_size: 8, learning_rate: 0.003}
"""  # noqa: E501
LEVIR = "{pack: levir_cd, path: /nowhere/levir}"
LIBRISPEECH = "{pack: librispeech, train: [train-clean-100, train-clean-100]}"
WEIGHTS = "{architecture: resnet101, weights: {pack: imagenet_resnet101, path: /nowhere/resnet101.pth}}"


@dataclass(frozen=True)
class Wrong:
    """`key` of the valid study is `written`, as YAML, or absent if None; the message has `named`, `allowed`."""

    key: str
    written: str | None
    allowed: tuple[str, ...]
    named: str

    @property
    def name(self) -> str:
        return f"{self.key} absent" if self.written is None else f"{self.key}: {self.written}"


def wrong(key: str, written: str | None, *allowed: str, named: str | None = None) -> Wrong:
    return Wrong(key, written, allowed, named or key)


STUDIES = [
    # Another type; a boolean is no number, a quoted number neither.
    wrong("seeds", "3", "list"),
    wrong("seeds", "{first: 0}", "list"),
    wrong("seeds", "[true]", "integer", named="seeds.0"),
    wrong("seeds", "[0, '1']", "integer", named="seeds.1"),
    wrong("seeds", "[0.5]", "integer", named="seeds.0"),
    wrong("seeds", "[1e3]", "integer", named="seeds.0"),
    wrong("seeds", "[[0]]", "integer", named="seeds.0"),
    wrong("seeds", "[2026-01-01]", "integer", named="seeds.0"),
    wrong("seeds", "[.nan]", "integer", named="seeds.0"),
    wrong("seeds", "null", "list"),
    wrong("description", "3", "string"),
    wrong("tasks.change.baseline", "small", "tiny", named="tasks.change"),
    wrong("tasks.change.baseline", "[tiny]", "string"),
    wrong("cpu_threads", "true", "integer"),
    wrong("cpu_threads", "'1'", "integer"),
    wrong("cpu_threads", "1.5", "integer"),
    wrong("cpu_threads", ".inf", "integer"),
    wrong("deterministic", "1", "boolean"),
    wrong("precision", "half", "auto", "float32", "bfloat16"),
    wrong("precision", "16", "auto", "float32", "bfloat16"),
    wrong("deterministic", "'yes'", "boolean"),
    wrong("sparsity", "[sqrt]", "map of keys"),
    wrong("sparsity.ramp_end", "'0.4'", "number"),
    wrong("sparsity.ramp_end", "true", "number"),
    wrong("sparsity.every", "2.5", "integer"),
    wrong("sparsity.every", "true", "integer"),
    wrong("methods", "[dense, sp_in]", "map of keys"),
    wrong("methods.sp_in", "budgeted_broadcast", "map of keys"),
    wrong("methods.sp_in.gain", "true", "number"),
    wrong("methods.magnitude.pattern", "[2, 4]", "string"),
    wrong("tasks", "[change]", "map of keys"),
    wrong("tasks.change.models", "[tiny]", "map of keys"),
    wrong("tasks.change.models.tiny.widths", "8", "list"),
    wrong("tasks.change.models.tiny.widths", "[8, true]", "integer", named="tasks.change.models.tiny.widths.1"),
    wrong("tasks.change.training", "fast", "map of keys"),
    wrong("tasks.change.training.epochs", "'4'", "integer"),
    wrong("tasks.change.training.epochs", "true", "integer"),
    wrong("tasks.change.training.epochs", "4.5", "integer"),
    wrong("tasks.change.training.epochs", "2026-01-01", "integer"),
    wrong("tasks.change.training.learning_rate", "'0.003'", "number"),
    wrong("tasks.change.training.betas", "0.9", "list"),
    wrong("tasks.change.data.size", "big", "integer"),
    # Out of range.
    wrong("seeds", "[]", "at least 1"),
    wrong("seeds", "[-1]", "greater than or equal to 0", named="seeds.0"),
    wrong("seeds", "[2147483648]", "less than 2147483648", named="seeds.0"),
    wrong("seeds", f"[{10**40}]", "2147483648", named="seeds.0"),
    wrong("seeds", "[1, 0, 1]", "1 given twice"),
    wrong("budgets", "[]", "at least 1"),
    wrong("budgets", "0.5", "list"),
    wrong("budgets", "[0.3000001]", "two decimals", named="budgets.0"),
    wrong("budgets", "[0.5, 0.333]", "two decimals", named="budgets.1"),
    wrong("budgets", "[0.01]", "[0.05, 1]", named="budgets.0"),
    wrong("budgets", "[1.5]", "[0.05, 1]", named="budgets.0"),
    wrong("budgets", "[50]", "[0.05, 1]", named="budgets.0"),
    wrong("budgets", "[-0.5]", "[0.05, 1]", named="budgets.0"),
    wrong("budgets", "[.nan]", "not a number", named="budgets.0"),
    wrong("budgets", "[.inf]", "[0.05, 1]", named="budgets.0"),
    wrong("budgets", "[true]", "not a number", named="budgets.0"),
    wrong("budgets", "[half]", "not a number", named="budgets.0"),
    wrong("budgets", "[2026-01-01]", "not a number", named="budgets.0"),
    wrong("budgets", "[0.5, '0.50']", "0.50 given twice"),
    wrong("cpu_threads", "0", "greater than or equal to 1"),
    wrong("cpu_threads", "-2", "greater than or equal to 1"),
    wrong("cpu_threads", "100000", "less than or equal to 256"),
    wrong("sparsity.ramp_end", "-0.1", "greater than or equal to 0"),
    wrong("sparsity.ramp_end", ".nan", "less than or equal to 0.95"),
    wrong("sparsity.freeze", "1.0", "0.95"),
    wrong("sparsity.freeze", ".inf", "0.95"),
    wrong("sparsity.every", "0", "greater than or equal to 1"),
    wrong("methods.sp_in.gain", "-0.1", "greater than 0"),
    wrong("methods.sp_in.gain", ".nan", "less than or equal to 10"),
    wrong("tasks.change.training.epochs", "100000000000", "less than or equal to 10000"),
    wrong("tasks.change.training.learning_rate", "0", "greater than 0"),
    wrong("tasks.change.training.learning_rate", ".inf", "less than or equal to 10"),
    wrong("tasks.change.training.learning_rate", ".nan", "less than or equal to 10"),
    wrong("tasks.change.training.betas", "[0.9]", "missing", named="tasks.change.training.betas.1"),
    wrong("tasks.change.training.betas", "[0.9, 1.0]", "less than 1", named="tasks.change.training.betas.1"),
    wrong("tasks.change.training.clip_norm", "-1", "greater than 0"),
    wrong("tasks.change.training.clip_norm", ".inf", "finite"),
    wrong("tasks.change.models", "{}", "at least 1"),
    wrong("tasks.change.models.tiny.widths", "[]", "at least 1"),
    wrong("tasks.change.data.train", "0", "greater than or equal to 1"),
    # Names that are not there.
    wrong("budget", "[0.5]", "did you mean 'budgets'?", "cpu_threads"),
    wrong("sparsity.rescal", "none", "did you mean 'rescale'?", "ramp_end"),
    wrong("sparsity.rescale", "square", "none", "sqrt", "energy"),
    wrong("sparsity.rescale", "true", "none", "sqrt", "energy"),
    wrong("methods.sp_in.algorithm", "budgeted_brodcast", "budgeted_broadcast", "rigl"),
    wrong("methods.sp_in.law", "logodds", "log_odds", "traffic"),
    wrong("methods.sp_in.side", "left", "in", "out", "both"),
    wrong("methods.sp_in.beta", "1", "unknown key", "gain"),
    wrong("methods.topk.side", "in", "unknown key", "allowed: algorithm"),
    wrong("methods.magnitude.pattern", "half", "pattern"),
    wrong("methods.Magnitude", "{algorithm: magnitude}", "^[a-z][a-z0-9_]*$"),
    wrong("tasks.chnage", "{}", "did you mean 'change'?", "asr", "face"),
    wrong("tasks.change.data.pack", "levir", "aerial_scenes", "levir_cd"),
    wrong("tasks.change.slabs", "narrow", "paper", "wide"),
    wrong("tasks.change.training.optimizer", "lion", "adamw", "adam", "sgd"),
    wrong("tasks.change.training.epoch", "4", "did you mean 'epochs'?"),
    wrong("tasks.change.models.a/b", "{widths: [8]}", "^[a-z][a-z0-9_]*$"),
    wrong("methods.17", "{algorithm: magnitude}", "^[a-z][a-z0-9_]*$"),
    wrong("tasks.asr.tokens.kind", "words", "characters", "unigram", "bpe"),
    wrong("tasks.face.models.resnet.architecture", "resnet50", "resnet101", "small"),
    wrong("tasks.classification.models.resnet.architecture", "resnet18", "cifar_resnet", "resnet50", "resnet101"),
    wrong(
        "tasks.classification.training.augmentation",
        "{crop: {kind: shift}}",
        "'pad', 'resized'",
        named="tasks.classification.training.augmentation.crop.kind",
    ),
    # Keys that are missing.
    wrong("seeds", None, "missing"),
    wrong("budgets", None, "missing"),
    wrong("methods", None, "missing"),
    wrong("methods.dense", None, "labelled 'dense'", named="methods"),
    wrong("methods.sp_in.algorithm", None, "missing"),
    wrong("tasks", None, "missing"),
    wrong("tasks", "{}", "at least one task", "asr, change, classification, detection, face, language, logic"),
    wrong("tasks.change.data", None, "missing"),
    wrong("tasks.change.data.pack", None, "missing"),
    wrong("tasks.change.training", None, "missing"),
    wrong("tasks.change.training.epochs", None, "missing"),
    wrong("tasks.change", "null", "map of keys"),
    # Contradictions between keys and between sections.
    wrong("sparsity.ramp_end", "0.9", "must not exceed freeze 0.75", named="sparsity"),
    wrong("sparsity.every", "1000", "at least 3 are needed", named="sparsity and tasks.change.training"),
    wrong("tasks.change.training.nesterov", "true", "only allowed with optimizer sgd", named="tasks.change.training"),
    wrong("tasks.change.training.warm_up_epochs", "4", "below epochs 4", named="tasks.change.training"),
    wrong("tasks.face.training.warm_up_epochs", "9", "below epochs 4", named="tasks.face.training"),
    wrong("methods.magnitude.pattern", "'2:5'", "2/5", "among the budgets", named="methods.magnitude"),
    wrong("methods.magnitude.pattern", "'16:32'", "does not fit fan 16 of tasks.asr", named="methods.magnitude"),
    wrong("budgets", "[0.25]", "pattern 2:4 needs 2/4", "among the budgets", named="methods.magnitude"),
    wrong("budgets", "[0.06, 0.5]", "in reach of no slab of tasks.asr.models.transformer", "allowed from 0.07"),
    wrong("tasks.change.tile", "48", "data.size 64 must be a multiple of tile 48", named="tasks.change"),
    wrong("tasks.change.models.tiny.widths", "[8, 8, 8, 8, 8, 8]", "multiple of 64", named="tasks.change"),
    wrong("tasks.change.training.batch_size", "65", "exceeds the 64 training tiles", named="tasks.change"),
    wrong("tasks.change.models.tiny.widths", "[2, 2]", "fan of at least 8", named="tasks.change.models.tiny"),
    wrong("tasks.asr.data.words", "270", "lexicon of 273", named="tasks.asr.data"),
    wrong("tasks.asr.data.shortest", "5", "must not exceed longest 4", named="tasks.asr.data"),
    wrong("tasks.asr.data", LIBRISPEECH, "given twice", named="tasks.asr.data.train"),
    wrong("tasks.asr.models.transformer.heads", "3", "twice the 3 heads", named="tasks.asr.models.transformer"),
    wrong("tasks.classification.models.resnet.depth", "10", "is not 6n + 2; allowed are 8, 14, 20"),
    wrong("tasks.classification.size", "4", "greater than or equal to 16"),
    wrong("tasks.face.data.identities", "33", "two images for each", named="tasks.face.data"),
    wrong("tasks.face.models.resnet.widths", None, "widths is missing", named="tasks.face.models.resnet"),
    wrong("tasks.face.models.resnet.blocks", "[1]", "1 stages, but widths has 2", named="tasks.face.models.resnet"),
    wrong("tasks.face.training.batch_size", "65", "exceeds the 64 training images", named="tasks.face"),
    # Paths that do not exist.
    wrong("tasks.change.data", LEVIR, "no folder or archive /nowhere/levir", named="tasks.change.data.path"),
    wrong("tasks.face.models.resnet", WEIGHTS, "no file /nowhere", named="tasks.face.models.resnet.weights.path"),
]

TEXTS = {
    "empty": ("", "must be a map of keys"),
    "a comment only": ("# nothing\n", "must be a map of keys"),
    "a list": ("- seeds\n- budgets\n", "must be a map of keys"),
    "a word": ("demo", "must be a map of keys"),
    "two documents": (f"{VALID}\n---\n{VALID}", "not valid YAML"),
    "a tab": (VALID.replace("  dense:", "\tdense:"), "not valid YAML"),
    "a bracket left open": (VALID.replace("[0, 1]", "[0, 1", 1), "not valid YAML"),
    "a colon too many": (VALID.replace("cpu_threads: 1", "cpu_threads: 1: 2"), "not valid YAML"),
    "an object of Python": (VALID.replace("cpu_threads: 1", "cpu_threads: !!python/name:os.system"), "not valid YAML"),
    "a date that is none": (VALID.replace("[0, 1]", "[2026-13-01]"), "not valid YAML"),
    "a number of 5,000 digits": (VALID.replace("[0, 1]", f"[{'1' * 5000}]"), "not valid YAML"),
    "a list that holds itself": (VALID.replace("[0, 1]", "&seeds [*seeds]"), "not valid YAML"),
    "lists in lists without end": (VALID.replace("[0, 1]", "[" * 5000), "not valid YAML"),
    "a date as a label": (VALID.replace("  topk:", "  2026-01-01:"), "methods"),
    "half a character": (VALID.replace("One key", r'"\ud800"'), "not valid YAML"),
    "a section given twice": (f"{VALID}\nseeds: [2]\n", "'seeds' given twice"),
    "a method given twice": (
        VALID.replace("  topk: {algorithm: topk}", "  rigl: {algorithm: topk}"),
        "'rigl' given twice",
    ),
    "a key given twice": (VALID.replace("tile: 32", "tile: 32\n    tile: 64"), "'tile' given twice"),
    "no text": (b"\x00\x01\x02", "not valid YAML"),
    "not UTF-8": (VALID.replace("One key", "Une cl\xe9").encode("latin-1"), "not valid YAML"),
}

WRONG_KNOBS = [
    ("study", "../case", ("pattern",)),
    ("study", "csae", ("known studies: case",)),
    ("study", None, ("string",)),
    ("device", "gpu", ("auto", "cpu", "cuda")),
    ("device", True, ("auto", "cpu", "cuda")),
    ("results_from", "shipped", ("runs", "reference")),
    ("cells", "some", ("all", "done")),
    ("tasks", "speech", ("speech is not in the study", "all, ")),
    ("tasks", "change,,asr", ("pattern",)),
    ("tasks", None, ("string",)),
    ("live", "mlflow", ("none", "tensorboard", "wandb")),
    ("data_dir", "", ("at least 1 character",)),
    ("data_dir", "/proc/data", ("cannot write into /proc",)),
    ("results_dir", "/proc/results", ("cannot write into /proc",)),
    ("compile", "always", ("auto", "on", "off")),
    ("compile", 1, ("auto", "on", "off")),
    ("resident", "gpu", ("auto", "on", "off")),
    ("resident", ["on"], ("auto", "on", "off")),
    ("gpu_slots", 0, ("greater than or equal to 1",)),
    ("gpu_slots", -1, ("greater than or equal to 1",)),
    ("gpu_slots", 1000, ("less than or equal to 64",)),
    ("gpu_slots", 1.5, ("integer",)),
    ("gpu_slots", "two", ("integer",)),
    ("gpu_slots", True, ("integer",)),
    ("gpu_slots", [2], ("integer",)),
    ("checkpoint_minutes", 0, ("greater than 0",)),
    ("checkpoint_minutes", -5, ("greater than 0",)),
    ("checkpoint_minutes", "soon", ("number",)),
    ("checkpoint_minutes", float("nan"), ("less than or equal to 10000",)),
    ("checkpoint_minutes", float("inf"), ("less than or equal to 10000",)),
    ("checkpoint_minutes", True, ("number",)),
    ("devcie", "cpu", ("did you mean 'device'?", "results_dir")),
    ("budgets", [0.5], ("unknown key", "study")),
]


def written(case: Wrong) -> str:
    """The valid study with the case's key as the case says."""
    content = yaml.safe_load(VALID)
    *parents, last = case.key.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    if case.written is None:
        del section[last]
    else:
        section[last] = "@place@"
    text = yaml.safe_dump(content, sort_keys=False)
    assert text.count("'@place@'") == (case.written is not None)
    return text.replace("'@place@'", case.written or "")


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """What the workflow says of a study and knobs, None if it accepts them."""
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BBNET_GPUS", raising=False)

    def say(text: str | bytes, **knobs) -> str | None:
        Path("studies/case.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            open_workflow(KNOBS | knobs)
        except ConfigError as error:
            return str(error)
        finally:
            # Nothing is made, accepted or not.
            assert os.listdir() == ["studies"]
        return None

    return say


def assert_says(message: str | None, source: str, named: str, allowed: tuple[str, ...]) -> None:
    """One line, about one thing: where, which key, and all of `allowed`."""
    assert message is not None, "was accepted"
    assert message.splitlines() == [message]
    assert re.match(rf"{re.escape(f'{source}: {named}')}[: ]", message), message
    assert message.count(f"{source}: ") == 1, message
    assert [word for word in allowed if word not in message] == [], message


def test_the_study_of_the_cases_is_valid_but_for_them(refusal):
    assert refusal(VALID) is None
    assert refusal(yaml.safe_dump(yaml.safe_load(VALID), sort_keys=False)) is None


def test_there_are_enough_cases_and_each_is_another():
    names = [case.name for case in STUDIES]
    assert len(set(names)) == len(names)
    assert len(names) + len(TEXTS) + len(WRONG_KNOBS) >= 40


@pytest.mark.parametrize("case", STUDIES, ids=lambda case: case.name)
def test_a_wrong_key_of_a_study_is_refused(refusal, case):
    assert_says(refusal(written(case)), "studies/case.yaml", case.named, case.allowed)


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_study_is_refused(refusal, case):
    text, said = TEXTS[case]
    message = refusal(text)
    assert message is not None, "was accepted"
    assert message.splitlines() == [message]
    assert message.startswith("studies/case.yaml: ")
    assert said in message


@pytest.mark.parametrize(("knob", "value", "allowed"), WRONG_KNOBS, ids=str)
def test_a_wrong_knob_is_refused(refusal, knob, value, allowed):
    message = refusal(VALID, **{knob: value})
    if value == "csae":
        assert message == "study csae: there is no file studies/csae.yaml; known studies: case"
    else:
        assert_says(message, "config.yaml or --config", knob, allowed)


def test_a_wrong_number_of_gpus_is_refused(refusal, monkeypatch):
    monkeypatch.setenv("BBNET_GPUS", "two")
    message = refusal(VALID, device="auto")
    assert message == "environment variable BBNET_GPUS: must be a whole number, found 'two'"


# Through snakemake itself, which would run the study if it were accepted.

THROUGH_SNAKEMAKE = {
    case.name: (written(case), (), "studies/case.yaml", case.named, case.allowed)
    for case in STUDIES
    if case.name
    in ("budgets: [0.3000001]", "seeds: [true]", "sparsity.every: 1000", "methods.sp_in.algorithm: budgeted_brodcast")
} | {
    "gpu_slots=0": (VALID, ("gpu_slots=0",), "config.yaml or --config", "gpu_slots", ("greater than or equal to 1",)),
    "devcie=cpu": (VALID, ("devcie=cpu",), "config.yaml or --config", "devcie", ("did you mean 'device'?",)),
    "a tab": (TEXTS["a tab"][0], (), "studies/case.yaml", "not valid YAML", ("line",)),
}


@pytest.fixture
def snakemake(tmp_path):
    """Runs the real workflow on a study and knobs, in a folder of its own."""
    for part in PARTS:
        (tmp_path / part).symlink_to(REPOSITORY / part)
    (tmp_path / "studies").mkdir()

    def run(study: str, *knobs: str, config: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        (tmp_path / "studies" / "case.yaml").write_text(study)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(KNOBS) if config is None else config)
        result = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", *(["--config", *knobs] if knobs else [])],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stdout
        assert not {"data", "results"} & set(os.listdir(tmp_path))
        return result

    return run


def test_snakemake_refuses_before_any_job(snakemake):
    assert len(THROUGH_SNAKEMAKE) >= 6
    for name, (study, knobs, source, named, allowed) in THROUGH_SNAKEMAKE.items():
        output = snakemake(study, *knobs).stdout
        lines = [line for line in output.splitlines() if line.startswith(f"{source}: ")]
        assert len(lines) == 1, f"{name}: {output}"
        assert_says(lines[0], source, named, allowed)


@pytest.mark.parametrize("config", ["study: [case", "- study\n- case\n", "study:\tcase\n\t- x"])
def test_a_config_file_that_is_no_map_is_refused(snakemake, config):
    output = snakemake(VALID, config=config).stdout
    assert output.count("Config file must be given as JSON or YAML") + output.count("Config file is not valid") == 1
