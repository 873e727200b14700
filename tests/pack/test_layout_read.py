"""Sections as they are read one by one, and matrices of unusual shapes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.forged import CABAC, KINDS, RAW
from specimens import PROVENANCE, PUNY, WORDS, fancy, header_of

from fairway.base.errors import UserError
from fairway.config.settings import PackConfig
from fairway.pack.artifact import load_artifact, read_sections, save_artifact
from fairway.pack.layout import section_bits, section_bytes, section_trellis
from fairway.quantise.grid import QuantisedTensor, restore


@pytest.mark.parametrize("kind", KINDS)
def test_sections_are_read_as_they_were_before_compression_codes_last(
    kept: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    path, state = tmp_path / "a.fwy", KINDS[kind][0]()
    path.write_bytes(kept[kind])
    found = list(read_sections(path))
    kinds = [entry["kind"] for entry, _, _ in found]
    assert kinds == sorted(kinds, key=lambda kind: kind == "codes")
    sections = header_of(kept[kind])["sections"]
    found.sort(key=lambda read: sections.index(read[0]))
    assert [entry for entry, _, _ in found] == sections
    for entry, spec, raw in found[:-1]:
        assert spec is not None and (spec.name, spec.kind) == (entry["name"], entry["kind"])
        assert raw == section_bytes(spec, state) and len(raw) == entry["raw_bytes"]
        assert entry["bits"] == section_bits(spec, state)
        assert entry["trellis"] == section_trellis(spec, state)
    entry, spec, raw = found[-1]
    assert spec is None and raw == WORDS.data
    assert {key: entry[key] for key in ("name", "kind", "bits")} == {
        "name": "tokenizer", "kind": "tokenizer", "bits": 8
    }  # fmt: skip
    assert entry["trellis"] == 0
    path.write_bytes(kept[kind][:-1])
    with pytest.raises(UserError, match=r"the file has \d+ bytes, but its header describes"):
        list(read_sections(path))


@pytest.mark.parametrize("pack", [RAW, CABAC])
def test_wide_and_tall_matrices_come_back(tmp_path: Path, pack: PackConfig) -> None:
    config = replace(PUNY, mlp_dim=24, num_kv_heads=2)
    state = fancy(config)
    save_artifact(tmp_path / "a.fwy", state, config, pack, WORDS, PROVENANCE)
    found = load_artifact(tmp_path / "a.fwy").state
    for name, tensor in state.items():
        wanted = restore(tensor) if isinstance(tensor, QuantisedTensor) else tensor.float()
        assert torch.equal(found[name], wanted), name
