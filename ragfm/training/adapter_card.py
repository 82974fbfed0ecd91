"""Model cards: base, data, licence and figures of an adapter, from its record, and the form of all cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ragfm.models.adapters import AdapterRecord
from ragfm.models.model_card import read_licence
from ragfm.models.model_lookup import BUNDLED, Job, weights_sha256

CARD = "README.md"


def adapter_card(record: AdapterRecord) -> str:
    """A model card in Markdown, with the metadata of the Hugging Face hub."""
    data, numbers = record.data, record.numbers
    metadata = {
        "base_model": record.base.get("model", record.base["name"]),
        **({"license": record.licence} if record.licence else {}),
        "library_name": "transformers" if record.method == "full" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["rag", "ragfm"],
    }
    lines = [
        f"# {'Model' if record.method == 'full' else 'Adapter'} for answers from passages",
        "",
        f"Trained by {record.method} for the prompt of ragfm: it answers from numbered passages and cites "
        "their numbers.",
        "",
        f"- Licence: {record.licence or 'not stated'}",
        base_line(record.base),
        *([f"- Continues the adapter: `{record.settings['start']}`"] if record.settings.get("start") else []),
        f"- Prompt: fingerprint `{record.prompt or 'unknown'}`",
    ]
    for source in data.get("sources", []):
        licence = source.get("licence") or "not stated"
        lines.append(f"- Data: {source.get('name', 'examples')} (licence: {licence})")
    if kinds := data.get("kinds"):
        lines.append("- Examples: " + ", ".join(f"{name} {count}" for name, count in kinds.items()))
    if numbers:
        loss, valid = numbers["loss"], list(numbers.get("valid", {}).values())
        lines += [
            "",
            "| figure | value |",
            "|---|---|",
            f"| training examples | {numbers['examples']:,} |",
            f"| validation examples | {numbers['valid_examples']:,} |",
            f"| steps | {numbers['steps']:,} |",
            f"| training loss, first step and mean of the last five | {loss['first']:.3f}, {loss['last_5']:.3f} |",
            *([f"| validation, first and best | {valid[0]:.3f}, {min(valid):.3f} |"] if valid else []),
            f"| trained parameters | {numbers['learned']:,} of {numbers['parameters']:,} |",
            f"| seconds | {numbers['seconds']:,.0f} |",
        ]
    return card_text(metadata, lines)


def base_facts(name: str, path: Path, job: Job) -> dict[str, str]:
    """What a record says about the base of a training run: name, model, sha256 and, if it states one, its licence."""
    model = BUNDLED[job].names[-1] if name == "bundled" else name
    licence = read_licence(path)
    facts = {"name": name, "sha256": weights_sha256(path), "model": model}
    return {**facts, "licence": licence} if licence else facts


def base_line(base: Mapping[str, str]) -> str:
    """The line of a card about the base."""
    sha256 = f"sha256 `{base['sha256']}`, " if base["sha256"] else ""
    return f"- Base: `{base.get('model', base['name'])}` ({sha256}licence: {base.get('licence', 'not stated')})"


def card_text(metadata: Mapping[str, Any], lines: Sequence[str]) -> str:
    """A card in Markdown, with the metadata of the Hugging Face hub."""
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(lines) + "\n"
