"""What every format of adapters does, over formats.FORMATS: a new one is tested by its line there and a sample."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, write_checkpoint
from samples import LAYER, SAMPLES, Sample

from adaptertool import formats
from adaptertool.errors import InputError, UnsupportedError
from adaptertool.files.parsed import Parsed
from adaptertool.formats import BY_NAME, FORMATS, format_at, is_adapter, misreadings, read_alone, recognised, writing
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.formats.format import Format, Written
from adaptertool.spec.adapter import Adapter


def read(own: Format, path: Path) -> Adapter:
    return own.read(Parsed(path), lambda _: True)


def test_each_format_has_a_sample_and_a_name_of_its_own() -> None:
    assert list(BY_NAME) == [one.name for one in FORMATS]
    assert set(SAMPLES) == set(BY_NAME)


@pytest.mark.parametrize("own", FORMATS, ids=lambda own: own.name)
class TestFormat:
    @pytest.fixture
    def sample(self, own: Format) -> Sample:
        return SAMPLES[own.name]

    @pytest.fixture
    def path(self, sample: Sample, tmp_path: Path) -> Path:
        return sample.make(tmp_path / "adapter")

    def test_recognises_its_own_and_nothing_else(self, own: Format, path: Path, tmp_path: Path) -> None:
        assert [one for one in FORMATS if one.recognise(path)] == [own]
        (tmp_path / "empty").mkdir()
        for other in (tmp_path / "empty", FIXTURES / "base", FIXTURES / "tuned", tmp_path / "none", path / ("x" * 300)):
            assert not own.recognise(other)
        for name, sample in SAMPLES.items():
            if name != own.name:
                assert not own.recognise(sample.make(tmp_path / name))

    def test_claims_every_tensor_once(self, own: Format, path: Path) -> None:
        adapter = read(own, path)
        claimed = [ref.spec.name for module in adapter.modules for ref in module.factors.values()]
        assert sorted([*claimed, *adapter.ignored]) == sorted(adapter.tensors)
        assert {module.layer for module in adapter.modules if module.rank} == {SAMPLES[own.name].layer}
        assert set(adapter.files) == {path / name for name in (own.files.config, own.files.weights) if name is not None}

    def test_says_what_it_was_parsed_from(self, own: Format, path: Path) -> None:
        adapter, files = read(own, path), Parsed(path)
        assert adapter.format == own.name
        config, header = own.files.config, files.header(own.files.weights)
        assert adapter.fields == (header.fields if config is None else files.json(config))
        assert adapter.metadata == files.header(own.files.weights).metadata

    def test_refuses_an_unknown_field_by_name(self, own: Format, path: Path, sample: Sample) -> None:
        if sample.with_field is None or own.files.config is None:
            return
        sample.with_field(path, "quite_new", 1)
        with pytest.raises(UnsupportedError, match="quite_new"):
            read(own, path)
        assert own.facts(Parsed(path).json(own.files.config)).kind  # and it can be described all the same
        assert [group.name for group in own.by_names(Parsed(path))]

    def test_refuses_an_unknown_tensor_by_name(self, own: Format, path: Path, sample: Sample) -> None:
        sample.with_tensor(path, "quite_new")
        with pytest.raises(InputError, match="quite_new"):
            read(own, path)


@pytest.mark.parametrize("own", [own for own in FORMATS if own.write is not None], ids=lambda own: own.name)
class TestWritten:
    @pytest.fixture
    def path(self, own: Format, tmp_path: Path) -> Path:
        return SAMPLES[own.name].make(tmp_path / "adapter")

    @pytest.mark.parametrize("which", [0, 1])
    def test_says_what_is_missing(self, own: Format, path: Path, which: int) -> None:
        missing = own.files.named[which]
        (path / missing).unlink()
        with pytest.raises(InputError, match=missing):
            read(own, path)

    def test_what_is_written_is_read_as_it_was(self, own: Format, path: Path) -> None:
        before = read_alone(Parsed(path))
        layers = [Written(one.path, one.rank, one.scale, one.is_parameter) for one in before.layers.values()]
        text = writing(own).config_text(before.fields, layers, targets_of=before.fields)
        (path / own.files.named[0]).write_bytes(text)
        assert read_alone(Parsed(path)).layers == before.layers

    @pytest.mark.parametrize("alpha", ["0", "0.5", "-3"])
    def test_an_adapter_times_a_number(self, own: Format, path: Path, alpha: str) -> None:
        before = read_alone(Parsed(path)).layers[LAYER]
        (path / own.files.named[0]).write_bytes(writing(own).times(read(own, path), Decimal(alpha)))
        assert read_alone(Parsed(path)).layers[LAYER].scale == before.scale * float(alpha)

    @pytest.mark.parametrize("rank", [1, 7, 600])
    def test_the_nearest_scale_is_near(self, own: Format, rank: int) -> None:
        for scale in (1.0, 0.1, 1 / 3, 1e5):
            assert abs(writing(own).nearest_scale(scale, rank) - scale) <= 2.0**-52 * scale

    def test_renamed(self, own: Format, path: Path) -> None:
        layered = read_alone(Parsed(path))
        other = own.renamed(layered, {LAYER: lambda name: f"x.{name}"})
        assert list(other.layers) == [f"x.{LAYER}"]
        old = [ref.spec.name for layer in layered.layers.values() for ref in layer.refs]
        new = [ref.spec.name for layer in other.layers.values() for ref in layer.refs]
        prefix = own.files.prefix
        assert new == [f"{prefix}x.{name.removeprefix(prefix)}" for name in old]
        assert [module.target for module in other.saved] == [module.target for module in layered.saved]

    def test_its_files_are_no_part_of_a_checkpoint(self, own: Format, path: Path, tmp_path: Path) -> None:
        root = write_checkpoint(tmp_path / "base", {"a": torch.ones(2)})
        for name in own.files.named:
            (root / name).write_bytes((path / name).read_bytes())
        checkpoint = open_checkpoint(root)
        assert {asset.name for asset in checkpoint.assets} == {"config.json"}
        assert set(checkpoint.left) == {*own.files.named}


def test_two_formats_for_one_folder_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SAMPLES["peft"].make(tmp_path / "adapter")
    other = dataclasses.replace(FORMATS[0], name="another")
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, other))
    with pytest.raises(InputError, match="peft or of another"):
        recognised(path)


def test_where_there_is_none_the_default_says_so(tmp_path: Path) -> None:
    assert recognised(tmp_path) is None
    assert not is_adapter(tmp_path)
    with pytest.raises(InputError, match="is not an adapter"):
        read(format_at(tmp_path), tmp_path)


@pytest.mark.parametrize("own", [own for own in FORMATS if own.write is None], ids=lambda own: own.name)
def test_what_has_no_config_to_write_says_so(own: Format) -> None:
    with pytest.raises(UnsupportedError, match=f"adapters of the format {own.name} are read"):
        writing(own)


def test_what_is_only_read_is_not_written() -> None:
    with pytest.raises(UnsupportedError, match="another"):
        writing(dataclasses.replace(FORMATS[0], name="another", write=None))


def test_misreadings_are_those_of_each_source() -> None:
    plain = read(FORMATS[0], FIXTURES / "lora")
    stabilised = read(FORMATS[0], FIXTURES / "rslora")
    of_any = {"cut-in-thirds"}  # which is of the layers, whatever the adapter
    assert set(misreadings([plain])) == of_any
    assert set(misreadings([plain, stabilised])) == of_any | {"rslora-ignored", "alpha-pattern-ignored"}


def test_nobody_else_knows_the_files_of_a_format() -> None:
    package = Path(formats.__file__).parent.parent
    for path in package.rglob("*.py"):
        if not path.is_relative_to(package / "formats"):
            text = path.read_text()
            assert "adapter_config" not in text, path
            assert "formats.peft." not in text or "import" not in text.split("formats.peft.")[0].splitlines()[-1], path
