"""The model card of an adapter: base, data, licence and figures, from its record."""

from __future__ import annotations

import yaml

from ragfm.models.adapters import AdapterRecord

CARD = "README.md"


def adapter_card(record: AdapterRecord) -> str:
    """A model card in Markdown, with the metadata of the Hugging Face hub."""
    data, numbers = record.data, record.numbers
    metadata = {
        "base_model": record.base["name"],
        **({"license": record.licence} if record.licence else {}),
        "library_name": "transformers" if record.method == "full" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["rag", "ragfm"],
    }
    front = ["---", yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True) + "---", ""]
    trained = f"`{record.base['name']}`" + (f" (sha256 `{record.base['sha256']}`)" if record.base["sha256"] else "")
    objective = f" and {record.settings['objective']}" if record.settings.get("objective") else ""
    lines = [
        f"# {'Model' if record.method == 'full' else 'Adapter'} for answers from passages",
        "",
        f"Trained by {record.method}{objective} on {trained}, for the prompt of ragfm: it answers from "
        "numbered passages and cites their numbers.",
        "",
        f"- Licence: {record.licence or 'not stated'}",
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
            *([f"| validation, first and best | {valid[0]:.3f}, {_best(record, valid):.3f} |"] if valid else []),
            f"| trained parameters | {numbers['learned']:,} of {numbers['parameters']:,} |",
            f"| seconds | {numbers['seconds']:,.0f} |",
        ]
    return "\n".join([*front, *lines]) + "\n"


def _best(record: AdapterRecord, valid: list[float]) -> float:
    return max(valid) if record.settings.get("judge") == "answers" else min(valid)
