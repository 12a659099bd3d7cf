"""Scores, layers, energy, several runs, strange names, the card and --watch."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from puna.cli import main
from puna.config import ModelConfig
from puna.files import read_json, read_json_lines, write_json
from puna.model.parts import parts
from puna.report.card import build_card
from puna.report.page import build_report
from puna.rundir import METRICS
from tests.report.test_report import Page, make_run, page_of

SCORE = {"value": 61.5, "error": 1.1, "n": 200}


def add_records(run: Path, *records: dict) -> Path:
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return run


def add_results(run: Path, value: float = 61.5, name: str = "eval") -> Path:
    """An evaluation of 200 of BoolQ's examples, as `puna eval` writes it, with its records."""
    folder = run / name
    folder.mkdir(exist_ok=True)
    common = {"normalisation": "char", "shots": 0, "samples": 1, "judge": None, "skipped": 0, "unit": 100}
    result = {"task": "boolq", "label": "boolq", "n": 200, "of": 3270, "chance": 50.0, "groups": {},
              "metrics": {"accuracy": {**SCORE, "value": value}}}  # fmt: skip
    nq = {"task": "nq", "label": "nq-5", "n": 3610, "of": 3610, "chance": None, "groups": {}, **common,
          "metrics": {"exact match": {"value": 3.0, "error": 0.3, "n": 3610}}, "shots": 5}  # fmt: skip
    right = round(2 * value)
    records = [{"id": str(n), "values": {"accuracy": float(n < right)}} for n in range(200)]
    (folder / "boolq.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "nq-5.jsonl").write_text("")
    results = [{**result, **common}, nq, {"task": "piqa", "why": "its data is missing"}]
    write_json(folder / "results.json", {"model": "m", "results": results})
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path)


@pytest.fixture
def second(run, tmp_path):
    other = tmp_path / "runs/other"
    shutil.copytree(run, other)
    config = read_json(other / "config.json")
    config["optim"]["lr"] = 0.5
    write_json(other / "config.json", config)
    return other


def test_scores_over_training_have_error_bands_and_chance(run):
    score = {"score": 31.0, "error": 2.0, "chance": 25.0, "n": 400}
    for step in (10, 50, 100):
        add_records(
            run, {"kind": "validation", "step": step, "loss": 5.0, "evaluation": {"arc <easy>": score}}
        )
    page = page_of(run)
    assert "arc <easy>" in page.text
    assert "chance 25" in page.words
    assert [value for _, name, value in page.attributes if name == "class" and "band" in value]


def test_results_stand_beside_the_papers_with_n_of_n_or_not_scored(run):
    add_results(run)
    words = page_of(run).words
    assert "boolq accuracy 61.5 ± 1.1 (200 of 3,270) 50.0 76.5 78.1 83.1 85.3" in words
    assert "5-shot 3.0 ± 0.3 (3,610) 22.0 28.1 32.9 35.0" in words
    assert "piqa accuracy not scored 79.8 80.1 82.3 82.8" in words
    assert "all not scored" not in words
    for number in (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14):
        assert f"Table {number}. " in words


def test_results_elsewhere_are_named_and_what_holds_none_is_refused(run, tmp_path):
    folder = add_results(run, 70.0)
    moved = folder.rename(tmp_path / "scores")
    assert "70.0 ± 1.1" not in page_of(run).words
    assert "70.0 ± 1.1" in Page(build_report(run, evaluations=[moved])).words
    with pytest.raises(ValueError, match=r"holds no results\.json; make it with: puna eval"):
        build_report(run, evaluations=[tmp_path])
    (moved / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="run puna eval again"):
        build_report(run, evaluations=[moved])


def test_layers_are_drawn_as_heat_maps(run):
    config = ModelConfig(dim=8, n_layers=11, n_heads=2, ffn_dim=8, vocab_size=300)
    names = [part.parameter for part in parts(config)]
    for step in (1, 60, 120):
        norm = dict.fromkeys(names, 3.0 + step)
        add_records(run, {"kind": "layers", "step": step, "tokens": step, "norm": norm,
                          "update": dict.fromkeys(names, 0.001 / step)})  # fmt: skip
    words = page_of(run).words
    assert words.index("layer 0") < words.index("layer 2") < words.index("layer 10")
    assert "Update relative to the weights, by layer" in words
    assert "blocks." not in words.split("Layers")[-1]


def test_restarts_are_counted(run):
    add_records(run, {"kind": "start", "step": 0, "time": "2026-01-01T10:00:00+00:00"},
                {"kind": "start", "step": 40, "time": "2026-01-01T11:00:00+00:00"})  # fmt: skip
    assert (
        "started 2 times: from the beginning at 2026-01-01T10:00:00+00:00; resumed after step 40"
        in page_of(run).words
    )


def test_the_paper_s_carbon_stands_in_the_page(run):
    words = page_of(run).words
    assert "LLaMA-65B 400 1,022,362 1.1 449 173" in words
    assert "does not record its energy" in words


def test_hundreds_of_sources_and_strange_names_are_drawn(run):
    path = run / METRICS
    records = read_json_lines(path)
    names = [f"source <{n}> & “{n}”" for n in range(300)] + ["</script>", "\ud800", ""]
    for record in records:
        if record["kind"] == "validation":
            record["loss_by_source"] = record["bits_per_byte_by_source"] = dict.fromkeys(names, 2.0)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = page_of(run)
    assert "source <299> & “299”" in page.text
    assert page.source.count("</script>") == page.source.count("<script")


def test_a_run_of_one_step_has_a_page(tmp_path):
    words = page_of(make_run(tmp_path, steps=1, finished=False)).words
    assert "step 1 of 800" in words


def test_several_runs_are_overlaid_with_what_differs(run, second, tmp_path):
    page = Page(build_report([run, second]))
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    assert (tmp_path / "comparison.html").is_file()
    assert "optim.lr 0.001 0.5" in page.words
    assert "schedule.steps" not in page.words
    assert "demo: training, centred mean" in page.words
    assert "other − demo" in page.words


def test_equal_runs_differ_by_nothing(run, second):
    shutil.copy(run / "config.json", second / "config.json")
    page = Page(build_report([run, second]))
    assert "The configurations are equal." in page.words
    data = [json.loads(one) for one in page.scripts[:-1]]
    gaps = [chart for chart in data if chart["name"].startswith("difference")]
    assert gaps
    assert {value for chart in gaps for one in chart["series"] for value in one["y"]} == {0.0}


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = tmp_path / "elsewhere/demo"
    shutil.copytree(run, other)
    words = Page(build_report([run, other])).words
    assert str(run) in words
    assert str(other) in words


@pytest.mark.parametrize("unit", ["steps", "FLOPs"])
def test_runs_can_be_laid_on_steps_or_flops(run, second, unit):
    page = Page(build_report([run, second], unit=unit))
    first = json.loads(page.scripts[0])
    assert first["unit"] == unit
    series = first["series"][0]
    expected = 120 if unit == "steps" else series["tokens"][-1] * series["flops"]
    assert first["x"][1] == pytest.approx(expected)


def test_paired_tests_come_from_the_records(run, second, capsys):
    add_results(run, 50.0)
    add_results(second, 60.0)
    assert main(["report", str(run), str(second), "--json"]) == 0
    page = Page(Path(json.loads(capsys.readouterr().out)["report"]))
    assert "boolq, accuracy" in page.words
    # 100 and 120 right of 200, of which 20 only in the second: exact McNemar is 2 / 2^20.
    assert "200 50.0 60.0 +10.0" in page.words
    assert "0 20 1.91e-06" in page.words


def test_settings_that_differ_are_said_and_not_compared(run, second):
    add_results(run)
    path = add_results(second) / "results.json"
    path.write_text(path.read_text().replace('"char"', '"byte"'))
    assert main(["report", str(run), str(second), "--out", "two.html"]) == 0
    assert "not compared: boolq: normalisation is char" in Page(Path("two.html")).words


def test_a_card_has_metadata_that_parses_and_only_what_is_known(run):
    add_results(run)
    text = build_card(run).read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"] == ["llama", "puna"]
    assert not {"license", "language", "datasets"} & metadata.keys()
    (scored, _) = metadata["model-index"][0]["results"]
    assert scored["dataset"]["name"] == "boolq"
    assert scored["metrics"][0]["value"] == 61.5
    assert "| boolq | accuracy | 61.5 ± 1.1 (200 of 3,270) | 76.5 |" in body
    assert "Fingerprint of the run: `9d4ebe47c5a6fe44`" in body


def test_a_card_names_languages_and_data_sets_where_the_manifests_do(run):
    path = run / "documents/wikipedia/manifest.json"
    manifest = read_json(path)
    manifest["config"]["options"] = {"languages": ["en", "de"]}
    manifest["inputs"][0]["path"] = "https://huggingface.co/datasets/some/set/resolve/main/a.bz2"
    write_json(path, manifest)
    header = yaml.safe_load(build_card(run).read_text().split("---\n")[1])
    assert header["language"] == ["de", "en"]
    assert header["datasets"] == ["some/set"]
    manifest["inputs"][0]["path"] = "dumps/dewiki-20260101-pages-articles.xml.bz2"
    write_json(path, manifest)
    header = yaml.safe_load(build_card(run).read_text().split("---\n")[1])
    assert header["language"] == ["de"]


def test_no_name_breaks_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path).rename(tmp_path / "a: |b\n---\n<i>")
    path = run / "manifest.json"
    path.write_text(path.read_text().replace("books", "bo|oks <b>"))
    text = build_card(run).read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
    assert "| bo\\|oks &lt;b&gt; |" in text
    assert "\n# a: \\|b --- &lt;i&gt;\n" in text


def test_watch_builds_until_the_run_is_finished(run, monkeypatch, capsys):
    finished = (run / "manifest.json").rename(run / "hidden")
    refreshes = []

    def sleep(seconds):
        source = (run / "report.html").read_text()
        refreshes.append('http-equiv="refresh" content="3"' in source)
        if len(refreshes) == 2:
            finished.rename(run / "manifest.json")

    monkeypatch.setattr("puna.cli.report.time.sleep", sleep)
    assert main(["report", str(run), "--watch", "--every", "3"]) == 0
    assert refreshes == [True, True]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()


def test_ctrl_c_ends_the_watch_with_a_page_that_does_not_reload(run, monkeypatch):
    (run / "manifest.json").unlink()

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("puna.cli.report.time.sleep", interrupt)
    assert main(["report", str(run), "--watch"]) == 0
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()


def test_the_commands_lead_from_the_dumps_to_the_run(run):
    words = page_of(run).words.split("Reproduce")[-1]
    names = ["puna corpus github raw/github.bz2 --out", "puna shards runs/demo/documents/books", "puna train"]
    places = [words.index(name) for name in names]
    assert places == sorted(places)
