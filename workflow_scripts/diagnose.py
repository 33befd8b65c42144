"""Watches steps of one run's training from its beginning, warm start and end, and probes its layers at these points."""

from pathlib import Path

from common import JSON, arguments, error_note, read_json, run, to_json, write_csv, write_text

from bbnet.data.store import alone
from bbnet.study.record import check_files, fingerprint, read_record
from bbnet.training import diagnose as inside
from bbnet.training.checkpoint import load_state
from bbnet.training.live import live_as_configured
from bbnet.training.runs import Job

ALIGNMENT = ("point", "layer", "call", "positions", "cka")


def main(options) -> None:
    folder: Path = options.folder / "diagnostics"
    asked = fingerprint(options.diagnostics)
    with alone(folder / ".lock"), error_note(folder, asked):
        record = read_record(options.folder / "record.json")
        check_files(options.folder, record)
        job = Job(record.config, options.prepared.with_suffix(""), read_json(options.prepared))
        warm_start = load_state(options.warm_start, job.device)
        if warm_start["fingerprint"] != record.config["warm_start"]:
            raise ValueError(f"{options.warm_start}: is the warm start of another configuration or of other code")
        looks = inside.diagnose(
            job, warm_start, options.folder, record.selected_epoch, options.dense, **options.diagnostics["settings"]
        )
        write(folder, looks, {"run": record.run, "fingerprint": record.fingerprint})
        flow, series = inside.flow_rows(looks), inside.series_rows(looks)
        with live_as_configured("/".join(folder.parts[-6:]), record.config) as live:
            for row in inside.live_rows(flow, series):
                live(row)


def write(folder: Path, looks: dict[str, inside.Look], described: dict) -> None:
    for name in ("activations", "weights", "units", "histograms", "alignment"):
        columns = ALIGNMENT if name == "alignment" else ()
        write_csv(folder / "probe" / f"{name}.csv", inside.probe_rows(looks, name), columns)
    flow, series = inside.flow_rows(looks), inside.series_rows(looks)
    write_csv(folder / "gradient_flow.csv", flow)
    write_csv(folder / "gradient_flow_series.csv", series)
    points = {
        point: {"first_step": look.offset + 1, "steps": look.record.steps, "observations": look.record.observations}
        for point, look in looks.items()
    }
    content = {"points": points, "parameters": flow, "verdicts": inside.verdict_rows(looks), "series": series}
    write_text(folder / "gradient_flow.json", to_json(described | content))


run(main, arguments(__doc__, diagnostics=JSON, prepared={}, warm_start={}, dense={"nargs": "?"}, folder={}))
