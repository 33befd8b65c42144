"""Writes what a study may contain: its JSON schema, for editors, and a page with all keys, for readers.

`python -m bbnet.cli.schema` writes `studies/schema.json` and `docs/studies.md`; a test compares both.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bbnet.binary.settings import WeightValues
from bbnet.sparsity.one_shot.settings import OneShotMethod, OneShotSettings
from bbnet.sparsity.parameters import DropAndGrowParameters
from bbnet.study.config import Diagnostics, Knobs, Study
from bbnet.study.sparsity import SparsifyingMethod, Sparsity
from bbnet.tasks.settings import NetworkSettings, SharedBatchTraining, TaskSettings

SCHEMA, PAGE = Path("studies", "schema.json"), Path("docs", "studies.md")
SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Keys of a study", Study),
    ("Keys of `sparsity`, which all methods share", Sparsity),
    ("Keys of `diagnostics`, which selects what `snakemake diagnostics` looks at", Diagnostics),
    ("Parameters of methods under `methods`, as far as several have them", DropAndGrowParameters),
    ("Key of every method but dense", SparsifyingMethod),
    ("Key of methods that can prune a trained network ([one_shot.md](one_shot.md))", OneShotMethod),
    ("Keys of `one_shot` of a method, where it is not just true", OneShotSettings),
    ("Keys of methods that say what their weights may be ([binary.md](binary.md))", WeightValues),
    ("Key that every task has, beside its own", TaskSettings),
    ("Keys of `training` of a task", SharedBatchTraining),
    ("Keys of every model of a task, beside its own", NetworkSettings),
    ("Options of config.yaml", Knobs),
)
INTRODUCTION = """# All keys of a study

A study is a file `studies/{name}.yaml`. It is complete: nothing is merged into it, and unknown keys are errors.
Whole numbers are decimal, also with zeros before them: 010 is ten.
The keys of each task, and the parameters of each algorithm, are described with them: [speech.md](speech.md),
[faces.md](faces.md), [classification.md](classification.md), [detection.md](detection.md), [language.md](language.md),
[didactic.md](didactic.md),
[algorithms.md](algorithms.md), and `studies/schema.json`, with which editors complete and check a study.

## Studies of this repository

| study | question | data | summary shipped |
|---|---|---|---|
| `demo` | how do the methods compare on three tasks? the default study | generated | yes |
| `smoke` | does everything run? | generated | no |
| `controls` | does it matter which units get more connections? laws, rivals, small dense networks | generated | no |
| `sensitivity` | which settings matter, [one at a time](#one-factor-at-a-time)? | generated | no |
| `didactic` | does the rule alone tie degrees to on-rates? ([formulas of bits](didactic.md)) | generated | yes |
| `binary` | what do [weights of one bit](binary.md) cost, with and without masks? | generated | yes |
| `big_little` | two branches or sparsity? ([Big-Little networks](big_little.md)) | generated | yes |
| `detector` | which parts of the [detector](detector.md) help? | generated | yes |
| `language` | what does pruning do to rare tokens of [texts](language.md)? | Python files | yes |
| `paper` | the paper's settings | LibriSpeech, LEVIR-CD, face pack | never run |
| `cifar10` | as `binary` | CIFAR-10 | never run |
| `imagenet` | as `big_little`, with published settings | a folder of yours | never run |
| `voc` | as `detector` | VOC 2007 and 2012 | never run |
| `wikitext` | as `language` | WikiText-2 | never run |

Studies on generated data and `language` run on a CPU, the others need a GPU. `bbnet plan --study NAME` estimates the
hours and gigabytes of each.

## One factor at a time

A study may vary single settings around a default, as `studies/sensitivity.yaml` does. Then name the default as
`reference`:

    reference: log_odds
    sparsity: {every: 10}
    methods:
      dense: {algorithm: dense}
      log_odds: {algorithm: budgeted_broadcast}
      gain_030: {algorithm: budgeted_broadcast, gain: 0.3}
      every_40: {algorithm: budgeted_broadcast, sparsity: {every: 40}}
      magnitude: {algorithm: magnitude}
      magnitude_every_40: {algorithm: magnitude, sparsity: {every: 40}}

- **`sparsity` of a method** replaces single settings of the study's. A setting that has no effect on the method, or
  is that of the study already, is refused.
- **A model** may have its own `learning_rate` and `warm_up_epochs`, so the share of the warm-up, or the activation of
  a network, is varied by models of a task beside its `baseline`. The number of epochs is the same for all of them.
- **Selection.** Where masks are fixed at different times, the weights of all runs of a task are selected on dev among
  the epochs after the latest of them, so that no run has more epochs to choose from. A later freeze therefore trains
  all runs again.
- **Contrasts.** The reference is compared with dense; each of its variants, the methods of its algorithm, with the
  reference; and all of them with the methods of other algorithms that have the same `sparsity`. Other pairs differ in
  more than one thing, and each contrast more makes Holm's method stricter for all.
- **Figure and table `sensitivity`** show, for each value of each factor, the difference from the default, and that of
  the reference from its rivals with the same value: where the latter changes its sign, so does the rank.

## Starting from the weights of another model

    tasks:
      classification:
        models: {backbone: {architecture: bottleneck_resnet, widths: [8, 16], blocks: [1, 1]}}
        ...
      face:
        models:
          pretrained: {architecture: small, widths: [8, 16], blocks: [1, 1], weights: {run: classification/backbone}}
        ...
    only: {classification: {backbone: [dense]}}  # if nothing else is wanted of it

- **Which weights.** Those that the dense run of `task/model` of the same seed has selected, its `model.safetensors`.
  Snakemake trains it before the warm-up of the model, which every method then starts from. It is shown in the results
  like any other run.
- **What is loaded** are the parameters, and the running statistics of norms, whose names and shapes are those of the
  model's own. Everything else keeps its first values, also the mean and sd of the training pixels, which describe the
  data. The log of the warm-up and `record.json` (`started_from`) name all of it. If no parameter fits, the warm-up
  fails.
- **What is trained again.** A change of the other model's settings, data or code trains this one again as well.
  `--until train` and `--until warm_up` stop ahead of it, since it comes after jobs of these names.
- **Refused** before any job starts: a model that is not in the study, that runs fewer seeds or not the method dense,
  and a model that starts from itself, also through others.
"""


def study_schema() -> str:
    """Returns the schema as text."""
    return json.dumps(Study.model_json_schema(), indent=1) + "\n"


def study_page() -> str:
    """Returns the page in Markdown."""
    return "\n".join([INTRODUCTION, *(line for section in SECTIONS for line in _section(*section))])


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield from (f"## {title}", "", "| key | default | meaning |", "|---|---|---|")
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_default(field)} | {field.description or ''} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "absent" if value in (None, "") else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    SCHEMA.write_text(study_schema(), encoding="utf-8")
    PAGE.write_text(study_page(), encoding="utf-8")
