"""The tables of diagnostics in the summary, and the tensors that never move."""

import csv
import json

import pytest

from bbnet.analysis.diagnosed import COLLECTED, collected, counted, folder_of, outdated_note, unmoved
from bbnet.analysis.summary import Summary
from bbnet.analysis.tables import verdicts

RUN = {"task": "change", "model": "small", "side": "in", "seed": 0}
SP_IN, DENSE = RUN | {"method": "sp_in", "budget": "0.20"}, RUN | {"method": "dense", "side": "none", "budget": "1.00"}
SLOW = {"check": "slow", "kind": "scale-free", "share": 0.75, "observations": 12, "evidence": "update / weight"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folders(tmp_path):
    """Diagnostics of a sparse run, whose weight is slow at the end, and of dense."""
    made = []
    for method, ill in (("sp_in", ["end"]), ("dense", [])):
        folder = tmp_path / "runs" / method
        for file in COLLECTED.values():
            write(folder / file, [{"point": "end", "layer": "NA", "value": 0.1}])
        flow = [
            {"point": point, "parameter": name, "status": status, "moves": 12, "observations": 12}
            for point in ("warm_start", "end")
            for name, status in (("NA.weight", "watched"), ("NA.bias", "watched"), ("frozen", "frozen"))
        ]
        write(folder / "gradient_flow.csv", flow)
        content = {
            "fingerprint": method,
            # As JSON with sorted keys has them.
            "points": {point: {"first_step": 1, "steps": 60, "observations": 12} for point in ("end", "warm_start")},
            "verdicts": [{"point": point, "parameter": "NA.weight", "module": "NA"} | SLOW for point in ill],
        }
        (folder / "gradient_flow.json").write_text(json.dumps(content), encoding="utf-8")
        made.append(folder)
    return made


@pytest.fixture
def summary(folders, tmp_path):
    def make(**changed):
        tables = collected([SP_IN, DENSE], folders)
        for name, table in tables.items():
            path = tmp_path / "summary" / "diagnostics" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            table = changed.get(name.split(".")[0], lambda each: each)(table)
            table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path, index=False)
        return Summary(tmp_path / "summary", "change", "small")

    return make


def test_tables_have_the_keys_of_each_run_and_its_counts(summary):
    read = summary().read
    assert set(read("diagnostics/alignment")["layer"]) == {"NA"}
    runs = read("diagnostics/runs")
    columns = ["method", "budget", "point", "tensors", "healthy", "fingerprint"]
    assert runs[columns].to_numpy().tolist() == [
        ["sp_in", "0.20", "warm_start", 2, 2, "sp_in"],
        ["sp_in", "0.20", "end", 2, 1, "sp_in"],
        ["dense", "1.00", "warm_start", 2, 2, "dense"],
        ["dense", "1.00", "end", 2, 2, "dense"],
    ]


def test_the_table_of_verdicts_has_every_run_and_what_it_rests_on(summary):
    table = verdicts(summary(), None)
    assert table.data["ill"].tolist() == [0, 1, 0, 0]
    shown = table.shown.iloc[1]
    columns = ["steps from", "healthy tensors", "finding", "tensors with it", "worst tensor", "evidence"]
    assert shown[columns].tolist() == [
        "end", "1 of 2", "slow (scale-free)", "1", "NA.weight", "update / weight",
    ]  # fmt: skip
    assert (table.shown.iloc[0][["finding", "tensors with it", "worst tensor"]] == "–").all()


def test_what_was_found_is_said_in_a_line_for_each_run(summary):
    assert list(counted(summary()))[0] == (
        "change/small/sp_in/b0.20/s0: tensors without findings: 2 of 2 from the warm start, 1 of 2 from the end"
    )


def test_a_tensor_that_never_moves_is_named_with_its_run(summary):
    assert unmoved(summary()) == ""

    def still(table):
        return table.assign(moves=table["moves"].where(table["parameter"] != "NA.bias", 0))

    assert unmoved(summary(gradient_flow=still)) == (
        "run change/small/sp_in/b0.20/s0: tensor NA.bias never moves, in none of 12 observed steps from the warm "
        "start; 3 more cases: see summary/diagnostics"
    )


def test_a_frozen_tensor_may_stand_still(summary):
    def still(table):
        return table.assign(moves=table["moves"].where(table["status"] == "watched", 0))

    assert unmoved(summary(gradient_flow=still)) == ""


def test_runs_that_were_trained_again_are_counted(summary, tmp_path):
    assert outdated_note(summary()) == ""
    for run, fingerprint in ((SP_IN, "another"), (DENSE, "dense")):
        record = tmp_path / "runs" / folder_of(run) / "record.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
    assert outdated_note(summary()) == (
        "1 of 2 runs were trained again since; snakemake diagnostics makes these figures anew"
    )


def test_a_file_that_cannot_be_read_is_named(folders):
    (folders[1] / "gradient_flow.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dense/gradient_flow.json: cannot be read"):
        collected([SP_IN, DENSE], folders)


def test_no_verdicts_and_no_alignment_leave_tables_with_their_columns(folders):
    (folders[1] / "probe/alignment.csv").write_text("point,layer,call,positions,cka\n", encoding="utf-8")
    tables = collected([DENSE], folders[1:])
    assert len(tables["verdicts.csv"]) == len(tables["alignment.csv"]) == 0
    assert {"method", "check", "evidence"} <= {*tables["verdicts.csv"]}
    assert {"method", "layer", "cka"} <= {*tables["alignment.csv"]}
