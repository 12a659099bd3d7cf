"""Runs -> tables: data, sizes, documents, settings, samples, commands, and what differs between runs."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.config import FinetuneConfig, LoraConfig, RunConfig, TuneConfig, run_config, to_dict
from puna.model.sizes import parameters
from puna.paper import SIZES, TABLE_1
from puna.recipes import recipe
from puna.report.lineage import AS_ABOVE, DROPPED, STEPS, Stage
from puna.report.run import Record, Run
from puna.rundir import CONFIG

MOST_INPUTS = 3
AGAIN = "-again"  # a run that is repeated is written beside the first
PER_PROMPT = 4


def sources(run: Run) -> list[str]:
    """The sources in the mixture's order, then those that only a validation names."""
    names = [str(row.get("source")) for row in run.details.get("mixture", [])]
    names += run.config.mixture.weights
    for record in [*run.validations, run.validation]:
        names += record.get("loss_by_source", {})
    return list(dict.fromkeys(names))


def mixture(run: Run) -> list[Record]:
    """The rows of Table 1: as intended, as run, and the paper's; an unfinished run only intends."""
    if run.manifest:
        rows = list(run.details.get("mixture", []))
    else:
        weights = run.config.mixture.weights
        total = sum(weights.values())
        rows = [{"source": source, "intended": weight / total} for source, weight in weights.items()]
    return [{**row, "paper": TABLE_1.get(row["source"])} for row in rows]


def sizes(runs: dict[str, Run]) -> list[Record]:
    """The rows of Table 2: these runs, and the paper's four."""
    configs = [(name, run.config) for name, run in runs.items()]
    configs += [(f"LLaMA {size}", recipe(size.lower())) for size in SIZES]
    return [
        {
            "name": name,
            "parameters": parameters(config.model),
            "model": config.model,
            "lr": config.optim.lr,
            "batch": config.schedule.batch_tokens,
            "tokens": config.schedule.batch_tokens * config.schedule.steps,
        }
        for name, config in configs
    ]


def documents(lineage: Stage) -> list[Record]:
    """Counts of each source's records: kept, dropped by reason, damaged; no rows where unknown."""
    tables: dict[str, Record] = {}
    for stage in lineage.walk():
        if stage.kind != "documents" or stage.state == AS_ABOVE:
            continue
        counts = stage.manifest.counts if stage.manifest else {}
        dropped = sorted(
            (name for name in counts if name.startswith(DROPPED)), key=lambda name: -counts[name]
        )
        rows = [(name, counts[name]) for name in ["kept", *dropped] if name in counts]
        if stage.manifest and stage.manifest.damaged:
            rows.append(("damaged, skipped", stage.manifest.damaged))
        tables[stage.path] = {
            "source": dict(stage.facts).get("source", stage.path),
            "outcomes": rows,
            "total": sum(count for _, count in rows),
            "characters": counts.get("characters"),
        }
    return list(tables.values())


def settings(config: RunConfig) -> list[tuple[str, list[tuple[str, str, str | None]]]]:
    """The configuration by section: field, value, and the recipe's value or the default if it differs."""
    values = to_dict(config)
    defaults = to_dict(_defaults(config))
    sections: dict[str, list[tuple[str, str, str | None]]] = {"run": []}
    for key, value in values.items():
        fields = value.items() if isinstance(value, dict) else [(key, value)]
        recipe_values = defaults[key] if isinstance(value, dict) else {key: defaults[key]}
        recipe_values = recipe_values or dict.fromkeys(value)  # lora, which is not set by default
        section = sections.setdefault(key if isinstance(value, dict) else "run", [])
        for name, field in fields:
            default = recipe_values[name]
            other = None if name == "recipe" or field == default else setting(default)
            section.append((name, setting(field), other))
    return list(sections.items())


def _defaults(config: RunConfig) -> RunConfig:
    """The recipe, or the defaults of finetuning beside what follows from the model and the data."""
    if isinstance(config, TuneConfig):
        follows = ("recipe", "data", "model", "mixture", "optim", "schedule")
        return TuneConfig(**{name: getattr(config, name) for name in follows})
    try:
        return recipe(config.recipe)
    except ValueError:  # a recipe of another version of puna
        return config


def setting(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item:g}" for key, item in value.items()) or "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return f"{value:g}" if isinstance(value, float) else "not set" if value is None else str(value)


_MACHINE = {
    "cpu": ("CPU", "{}"),
    "cores": ("CPU cores", "{}"),
    "threads": ("threads used", "{}"),
    "device_name": ("device's name", "{}"),
    "bf16_speed": ("speed of bf16 products beside fp32", "{:.2g} times"),
    "matrix_gflops": ("matrix peak, measured", "{:,.1f} GFLOP/s"),
    "torch": ("PyTorch", "{}"),
    "python": ("Python", "{}"),
    "platform": ("system", "{}"),
}


def machine(run: Run) -> list[tuple[str, str]]:
    """The machine and the versions, as label and value."""
    rows = []
    for key, value in run.details.get("machine", {}).items():
        label, form = _MACHINE.get(key, (key, "{}"))
        rows.append((label, form.format(value) if isinstance(value, int | float) else str(value)))
    return rows + ([("puna", run.manifest.code_version)] if run.manifest else [])


def commands(run: Run) -> list[str]:
    """The commands that make the run again, from its dumps on, as far as the manifests lead."""
    found: list[str] = []
    for stage in run.lineage.walk():
        if not stage.manifest:
            continue
        config, inputs = stage.manifest.config, stage.manifest.inputs
        folder = stage.path if not Path(stage.path).suffix else str(Path(stage.path).parent)
        if stage.kind == "documents":
            # The raw files are the inputs of the first of the source's steps.
            files = [file.path for one in stage.walk() for file in one.files]
            raw = [path for path in files if STEPS not in Path(path).parts]
            options = _flags(config.get("options", {}))
            line = f"puna corpus {config.get('source', 'SOURCE')} {_many(raw)}{options}"
        elif stage.kind == "tokenizer":
            known = {key: value for key, value in config.items() if value not in ({}, None)}
            line = f"puna tokenizer train {_many([entry.path for entry in inputs])}{_flags(known)}"
        elif stage.kind == "shards":
            documents = [entry.path for entry in inputs if entry.stage == "documents"]
            tokenizers = [entry.path for entry in inputs if entry.stage == "tokenizer"]
            model = shlex.quote(tokenizers[0]) if tokenizers else "TOKENIZER"
            line = f"puna shards {_many(documents)} --tokenizer {model}"
            line += _flags({key: config[key] for key in ("validation_share",) if key in config})
        elif stage.kind == "convert":
            model = _many([entry.path for entry in inputs])
            found.append(f"puna convert {model} {shlex.quote(folder)} --to puna")
            continue
        elif stage.kind == "run" and stage is not run.lineage:
            found.append(_training(Path(stage.path), run_config(config)))
            continue
        else:
            continue
        found.append(f"{line} --out {shlex.quote(folder)}")
    bases = [stage.path for stage in run.lineage.walk() if stage.kind == "run"]
    return [*sorted(dict.fromkeys(found), key=_stage_order), _training(run.path, run.config, bases)]


def _training(path: Path, config: RunConfig, bases: Sequence[str] = ()) -> str:
    """The command of a run; it writes to a new directory, and starts from the new one of a run in `bases`."""
    out = f"--out {shlex.quote(f'{path}{AGAIN}')}"
    if not isinstance(config, TuneConfig):
        return f"puna train --config {shlex.quote(str(path / CONFIG))} {out}"
    model = config.finetune.model + (AGAIN if config.finetune.model in bases else "")
    chosen: Record = {"model": model, "data": config.data}
    chosen |= _chosen(asdict(config.finetune), asdict(FinetuneConfig(config.finetune.model)))
    chosen |= _chosen({"seed": config.seed}, {"seed": 1})
    if config.lora:
        chosen["lora"] = {"r": config.lora.r} | _chosen(asdict(config.lora), asdict(LoraConfig()))
    for name in ("compute", "parallel", "save", "watch", "eval"):
        section = getattr(config, name)
        chosen[name] = _chosen(asdict(section), asdict(type(section)()))
    return f"puna finetune{_flags(chosen)} {out}"


def _chosen(values: Record, defaults: Record) -> Record:
    """The settings that are not the defaults."""
    return {key: value for key, value in values.items() if value != defaults[key]}


def _flags(options: Record) -> str:
    """Options of a stage as they are typed."""
    text = ""
    for key, value in options.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            text += f" --{flag}" if value else f" --{flag}=false"
        elif isinstance(value, dict):
            text += _flags({f"{key}.{name}": one for name, one in value.items()})
        elif isinstance(value, list | tuple):
            text += "".join(f" --{flag} {shlex.quote(str(one))}" for one in value)
        elif value is not None:
            text += f" --{flag} {shlex.quote(str(value))}"
    return text


def _stage_order(line: str) -> int:
    return ("corpus", "tokenizer", "shards", "train", "finetune", "convert").index(line.split()[1])


def _many(paths: Sequence[str]) -> str:
    """Paths as they are typed; of many in one folder, the folder."""
    folders = {str(Path(path).parent) for path in paths}
    shown = sorted(folders) if len(paths) > MOST_INPUTS else dict.fromkeys(paths)
    return " ".join(map(shlex.quote, shown)) or "INPUTS"


def samples(run: Run) -> list[tuple[str, list[Record]]]:
    """The samples by prompt, in the order of training: at most PER_PROMPT, from the first to the last."""
    prompts: dict[str, list[Record]] = {}
    for record in run.samples:
        prompts.setdefault(str(record["prompt"]), []).append(record)
    shown = []
    for prompt, records in prompts.items():
        records = sorted(records, key=lambda record: record["step"])
        last = len(records) - 1
        places = sorted({round(at * last / (PER_PROMPT - 1)) for at in range(PER_PROMPT)}) if last else [0]
        shown.append((prompt, [records[place] for place in places]))
    return shown


def differences(runs: dict[str, Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configurations that differ between runs, with each run's value."""
    flat = [_flat(to_dict(run.config)) for run in runs.values()]
    fields = dict.fromkeys(field for values in flat for field in values)
    rows = [(field, [setting(values.get(field)) for values in flat]) for field in fields]
    return [(field, values) for field, values in rows if len(set(values)) > 1]


def _flat(values: Record, prefix: str = "") -> Record:
    flat: Record = {}
    for key, value in values.items():
        is_section = isinstance(value, dict) and key != "weights"
        flat |= _flat(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat
